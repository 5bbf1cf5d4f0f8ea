#include "row_solver.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../torch_compat.h"

namespace trb::cpu {

template <typename F>
void RowSolver::over_blocks(const F& body) const {
  const int64_t blocks = static_cast<int64_t>(ends_.size());
  if (spread_) {
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) body(block);
    });
  } else {
    for (int64_t block = 0; block < blocks; ++block) body(block);
  }
}

Solver RowSolver::solve(const RowPair& row, double epsilon) {
  row_ = row;
  over_blocks([&](int64_t block) { ends_[block] = sweep_ends(row, block); });
  whole_ = Ends{};
  for (const Ends& part : ends_) whole_.merge(part);

  Solver solver(epsilon);
  solver.begin(whole_);
  Tilt tilt;
  while (solver.wants_sweep()) {
    const double beta = solver.beta();
    over_blocks([&](int64_t block) { tilts_[block] = sweep_tilt(row, block, beta); });
    tilt = Tilt{};
    for (const Tilt& part : tilts_) tilt.merge(part);
    solver.update(tilt);
  }
  status_ = solver.status();
  beta_ = solver.beta();
  weight_ = status_ == Status::kStudent   ? whole_.student
            : status_ == Status::kTeacher ? whole_.one.weight
                                          : tilt.weight;
  return solver;
}

LogSum RowSolver::block_weight(int64_t block) const {
  if (status_ == Status::kStudent) return ends_[block].student;
  return status_ == Status::kTeacher ? ends_[block].one.weight : tilts_[block].weight;
}

Draw RowSolver::sample(double uniform) const {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  if (status_ == Status::kFault || !(uniform >= 0.0 && uniform < 1.0)) return {-1, kNan, kNan, kNan};

  // Two levels. A token of weight zero never advances the running sum, so it can never be the first to exceed the
  // target; if rounding at u -> 1 leaves the target unreached, the last token of positive weight stands.
  const double target = uniform * weight_.mass;
  double before = 0.0;  // mass of the blocks before `chosen`
  int64_t chosen = -1;
  double running = 0.0;
  for (int64_t block = 0; block < static_cast<int64_t>(ends_.size()); ++block) {
    const double mass = weight_.share(block_weight(block));
    if (mass == 0.0) continue;
    chosen = block;
    before = running;
    running += mass;
    if (running > target) break;
  }
  double log_weights[kBlock];
  block_log_weights(row_, chosen, beta_, log_weights);
  const int64_t begin = chosen * kBlock, count = std::min(kBlock, row_.vocab - begin);
  const double peak = block_weight(chosen).peak, unit = std::exp(peak - weight_.peak);
  int64_t token = -1;
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const double w = std::exp(log_weights[i] - peak);
    if (w == 0.0) continue;
    token = i;
    sum += w;
    if (before + sum * unit > target) break;
  }

  double x, y;
  row_.student.load(begin + token, 1, row_.inverse_temperature, &x);
  row_.teacher.load(begin + token, 1, row_.inverse_temperature, &y);
  return {begin + token, static_cast<float>(log_weights[token] - weight_.log()),
          static_cast<float>(x - whole_.student.log()), static_cast<float>(y - whole_.teacher.log())};
}

void RowSolver::write_log_probs(float* out) const {
  if (status_ == Status::kFault) {
    std::fill(out, out + row_.vocab, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  const double log_total = weight_.log();
  over_blocks([&](int64_t block) {
    double log_weights[kBlock];
    block_log_weights(row_, block, beta_, log_weights);
    const int64_t begin = block * kBlock, count = std::min(kBlock, row_.vocab - begin);
    for (int64_t i = 0; i < count; ++i) out[begin + i] = static_cast<float>(log_weights[i] - log_total);
  });
}

}  // namespace trb::cpu
