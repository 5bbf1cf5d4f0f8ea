#include "row_solver.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "invert_cdf.h"

namespace trb::cpu {
namespace {

// Writes log of the unnormalized mu at each token of a block, in the frame of the answer; -inf outside its support.
void block_log_weights(const RowPair& row, const RowAnswer& answer, int64_t begin, int64_t count, double* out) {
  double y[kBlock];
  row.student.load(begin, count, 1.0, out);
  row.teacher.load(begin, count, 1.0, y);
  const double beta = answer.beta, scale = row.inverse_temperature;
  for (int64_t i = 0; i < count; ++i) {
    const bool supported = out[i] > -INFINITY && (beta == 0.0 || y[i] > -INFINITY);
    const double x = (out[i] - answer.origin_student) * scale;
    // At beta = 0 the teacher's logit may be -inf, and 0 * -inf is NaN.
    out[i] = !supported    ? -INFINITY
             : beta == 0.0 ? x
                           : (1.0 - beta) * x + beta * (y[i] - answer.origin_teacher) * scale;
  }
}

// Writes max(mu - pi_S, 0) at each token of a block. If the two are close, their difference is computed from that of
// their logarithms, because it would cancel otherwise.
void block_residual(const RowPair& row, const RowAnswer& answer, int64_t begin, int64_t count, double* out) {
  double log_weights[kBlock];
  block_log_weights(row, answer, begin, count, log_weights);
  row.student.load(begin, count, 1.0, out);
  for (int64_t i = 0; i < count; ++i) {
    const double log_mu = log_weights[i] - answer.log_norm;
    const double log_student = (out[i] - answer.max_student) * row.inverse_temperature - answer.log_student;
    const double ratio = log_mu - log_student;  // NaN if both are 0
    out[i] = !(ratio > 0.0) ? 0.0
             : ratio < 1.0  ? std::exp(log_student) * std::expm1(ratio)
                            : std::exp(log_mu) - std::exp(log_student);
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
  if (answer_.status == Status::kFault || !is_uniform(uniform)) return {};
  const auto weigh = [&](int64_t begin, int64_t count, double* out) {
    block_log_weights(row_, answer_, begin, count, out);
    const double peak = *std::max_element(out, out + count);
    for (int64_t i = 0; i < count; ++i) out[i] = std::exp(out[i] - peak);
  };
  const int64_t token = invert_cdf(answer_.mass, row_.vocab, uniform, weigh);
  if (token < 0) return {};
  return {token, log_probs_at(token)};
}

Draw RowSolver::sample_residual(double uniform) {
  if (answer_.status == Status::kFault || !is_uniform(uniform)) return {};
  if (answer_.status == Status::kStudent) return sample(uniform);  // mu is pi_S
  const auto weigh = [&](int64_t begin, int64_t count, double* out) {
    block_residual(row_, answer_, begin, count, out);
  };
  if (!in_double_) {
    float_row_.residual(row_, answer_, &residual_);
  } else {
    residual_.resize(block_count(row_.vocab));
    for_each_part(spread_, block_count(row_.vocab), [&](int64_t block) {
      double weights[kBlock];
      const int64_t begin = block * kBlock, count = std::min(kBlock, row_.vocab - begin);
      weigh(begin, count, weights);
      residual_[block] = std::accumulate(weights, weights + count, 0.0);
    });
  }
  const int64_t token = invert_cdf(residual_, row_.vocab, uniform, weigh);
  if (token < 0) return sample(uniform);
  return {token, log_probs_at(token)};
}

TokenLogProbs RowSolver::log_probs_at(int64_t token) const {
  double log_weight, a, b;
  block_log_weights(row_, answer_, token, 1, &log_weight);
  row_.student.load(token, 1, 1.0, &a);
  row_.teacher.load(token, 1, 1.0, &b);
  const double scale = row_.inverse_temperature;
  return {(a - answer_.max_student) * scale - answer_.log_student,
          (b - answer_.max_teacher) * scale - answer_.log_teacher, log_weight - answer_.log_norm};
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
