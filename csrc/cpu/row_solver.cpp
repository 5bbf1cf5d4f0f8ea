#include "row_solver.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trb::cpu {
namespace {

// log of the unnormalised mu at each token of a block, in the frame of the answer, and -inf off its support.
void block_log_weights(const RowPair& row, const RowAnswer& answer, int64_t begin, int64_t count, double* out) {
  double y[kBlock];
  row.student.load(begin, count, 1.0, out);
  row.teacher.load(begin, count, 1.0, y);
  const double beta = answer.beta, scale = row.inverse_temperature;
  for (int64_t i = 0; i < count; ++i) {
    const bool supported = out[i] > -INFINITY && (beta == 0.0 || y[i] > -INFINITY);
    const double x = (out[i] - answer.max_student) * scale;
    // Exact at the ends, and no 0 * -inf.
    out[i] = !supported ? -INFINITY : beta == 0.0 ? x : (1.0 - beta) * x + beta * (y[i] - answer.max_teacher) * scale;
  }
}

}  // namespace

const RowAnswer& RowSolver::solve(const RowPair& row, double epsilon) {
  row_ = row;
  in_double_ = !float_row_.solve(row, epsilon, &answer_);
  if (in_double_) double_row_.solve(row, epsilon, &answer_);
  return answer_;
}

Draw RowSolver::sample(double uniform) const {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  if (answer_.status == Status::kFault || !(uniform >= 0.0 && uniform < 1.0)) return {-1, kNan, kNan, kNan};

  // Two levels. A block or token of mass zero never advances the running sum, so it can never be the first to exceed
  // the target; if rounding at u -> 1 leaves the target unreached, the last token of positive mass stands.
  double total = 0.0;
  for (double mass : answer_.mass) total += mass;
  const double target = uniform * total;
  double before = 0.0, running = 0.0;
  int64_t chosen = -1;
  for (int64_t block = 0; block < static_cast<int64_t>(answer_.mass.size()); ++block) {
    if (answer_.mass[block] <= 0.0) continue;
    chosen = block;
    before = running;
    running += answer_.mass[block];
    if (running > target) break;
  }
  const int64_t begin = chosen * kBlock, count = std::min(kBlock, row_.vocab - begin);
  double log_weights[kBlock], weights[kBlock], sum = 0.0;
  block_log_weights(row_, answer_, begin, count, log_weights);
  const double peak = *std::max_element(log_weights, log_weights + count);
  for (int64_t i = 0; i < count; ++i) sum += weights[i] = std::exp(log_weights[i] - peak);
  // The tokens of the block share its mass exactly, whatever the rounding of either sum.
  const double unit = answer_.mass[chosen] / sum;
  int64_t token = -1;
  double within = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    if (weights[i] == 0.0) continue;
    token = i;
    within += weights[i];
    if (before + within * unit > target) break;
  }

  double a, b;
  row_.student.load(begin + token, 1, 1.0, &a);
  row_.teacher.load(begin + token, 1, 1.0, &b);
  const double scale = row_.inverse_temperature;
  return {begin + token, static_cast<float>(log_weights[token] - answer_.log_norm),
          static_cast<float>((a - answer_.max_student) * scale - answer_.log_student),
          static_cast<float>((b - answer_.max_teacher) * scale - answer_.log_teacher)};
}

void RowSolver::write_log_probs(float* out) const {
  if (answer_.status == Status::kFault) {
    std::fill(out, out + row_.vocab, std::numeric_limits<float>::quiet_NaN());
  } else if (!in_double_) {
    float_row_.write_log_probs(row_, answer_, out);
  } else {
    for_each_part(spread_, block_count(row_.vocab), [&](int64_t block) {
      double log_weights[kBlock];
      const int64_t begin = block * kBlock, count = std::min(kBlock, row_.vocab - begin);
      block_log_weights(row_, answer_, begin, count, log_weights);
      for (int64_t i = 0; i < count; ++i) out[begin + i] = static_cast<float>(log_weights[i] - answer_.log_norm);
    });
  }
}

}  // namespace trb::cpu
