#include "double_row.h"

#include <algorithm>
#include <cmath>

namespace trb::cpu {

template <typename Row>
void DoubleRow<Row>::solve(const Row& row, double epsilon, RowAnswer* answer) {
  // 1. Solve from the maxima. While mu's likeliest token lies far from the origin, solve again from that token.
  answer->origin_student = answer->max_student;
  answer->origin_teacher = answer->max_teacher;
  for (int origins = 1;; ++origins) {
    solve_from_origin(row, epsilon, answer);
    if (answer->status == Status::kFault) return;
    if (origins == 1) {
      answer->log_student = student_.log();
      answer->log_teacher = teacher_.log();
    }
    const WeighedToken token = likeliest(row, *answer);
    const double scale = row.inverse_temperature, x = (token.logits.student - answer->origin_student) * scale,
                 y = (token.logits.teacher - answer->origin_teacher) * scale;
    const bool far = token.t > -INFINITY && std::max(std::fabs(x), std::fabs(y)) > kFarthestFromOrigin;
    if (!far || origins == kMostOrigins || !(epsilon > 0.0)) break;
    answer->origin_student = token.logits.student;
    answer->origin_teacher = token.logits.teacher;
  }
  // 2. pi_S itself, which is the answer without a budget, may have its mass on tokens that the teacher masks.
  if (answer->status != Status::kStudent || answer->origin_student == answer->max_student) return;
  answer->origin_student = answer->max_student;
  answer->origin_teacher = answer->max_teacher;
  solve_from_origin(row, 0.0, answer);
}

// The common token with the largest t_beta.
template <typename Row>
WeighedToken DoubleRow<Row>::likeliest(const Row& row, const RowAnswer& answer) {
  const Origin origin{answer.origin_student, answer.origin_teacher};
  likeliest_.resize(blocks_);
  for_each_part(spread_, blocks_,
                [&](int64_t block) { likeliest_[block] = likeliest_token(row, origin, block, answer.beta); });
  WeighedToken most;
  for (const WeighedToken& token : likeliest_) most = token.t > most.t ? token : most;
  return most;
}

template <typename Row>
void DoubleRow<Row>::solve_from_origin(const Row& row, double epsilon, RowAnswer* answer) {
  // 1. The first sweep gives the sums at both ends of [0, 1].
  const Origin origin{answer->origin_student, answer->origin_teacher};
  ends_.resize(blocks_);
  tilts_.resize(blocks_);
  for_each_part(spread_, blocks_, [&](int64_t block) { ends_[block] = sweep_ends(row, origin, block); });
  Ends whole;
  for (const Ends& part : ends_) whole.merge(part);

  // 2. Further sweeps at the betas that the solver asks for.
  Solver solver(epsilon, kMaxDoubleSweeps, false);
  solver.begin(start_of(whole));
  Tilt tilt;
  while (solver.next()) {
    const double beta = solver.swept_beta();
    for_each_part(spread_, blocks_, [&](int64_t block) { tilts_[block] = sweep_tilt(row, origin, block, beta); });
    tilt = Tilt{};
    for (const Tilt& part : tilts_) tilt.merge(part);
    const Node node = node_of(beta, tilt, whole.zero);
    solver.update(&node, 1, true);
  }

  // 3. The answer, with log mu's normalizer and the mass of mu per block: at the ends from the first sweep, inside from
  // the last sweep, moved by the solver's final shift.
  answer->status = solver.status();
  answer->beta = solver.beta();
  answer->kl = solver.kl();
  answer->sweeps += solver.sweeps();
  if (solver.status() == Status::kFault) return;
  student_ = whole.student;
  teacher_ = whole.teacher;
  answer->mass.resize(blocks_);
  if (solver.status() == Status::kStudent) {
    answer->log_norm = whole.student.log();
    for (int64_t i = 0; i < blocks_; ++i) answer->mass[i] = whole.student.share(ends_[i].student);
  } else if (solver.status() == Status::kTeacher) {
    answer->log_norm = whole.one.weight.log();
    for (int64_t i = 0; i < blocks_; ++i) answer->mass[i] = whole.one.weight.share(ends_[i].one.weight);
  } else {
    const double h = solver.shift();
    answer->log_norm = tilt.log_mass_shifted_by(h);
    for (int64_t i = 0; i < blocks_; ++i) {
      const Tilt& part = tilts_[i];
      const double moved = std::exp(h * (part.mean - tilt.mean)) * (1.0 + h * h * (0.5 * part.m2 + h * part.m3 / 6.0));
      answer->mass[i] = tilt.weight.share(part.weight) * (part.weight.empty() ? 0.0 : moved);
    }
  }
}

template class DoubleRow<RowPair>;
template class DoubleRow<OutcomePair>;

}  // namespace trb::cpu
