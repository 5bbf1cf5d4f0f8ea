// Solves one row: finds beta and the divergence from its logits, and draws a token or writes log mu from that answer.
// The scratch memory is some hundred bytes per block of 1024 tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "double_row.h"
#include "float_row.h"

namespace trb::cpu {

class RowSolver {
 public:
  // If `spread`, all threads share the blocks of a row, for calls with few rows. Otherwise the calling thread sweeps
  // them.
  RowSolver(int64_t vocab, bool spread, const SweepTable& sweeps)
      : spread_(spread), float_row_(vocab, spread, sweeps), double_row_(vocab, spread) {}

  // Finds beta for the row. All functions below are about the row that was solved last.
  const RowAnswer& solve(const RowPair& row, double epsilon);

  // Draws a token from mu by the inverse CDF in token order: the first token whose cumulative mass exceeds `uniform`,
  // which must be in [0, 1). Reads one block again. Returns token -1 and NaN for a row at fault and for any other
  // uniform.
  Draw sample(double uniform) const;

  // Draws the token that replaces a rejected draft, from max(mu - pi_S, 0), so that draft and replacement together are
  // distributed as mu. Draws from mu if rounding leaves no mass in max(mu - pi_S, 0). Reads the row again.
  Draw sample_residual(double uniform);

  // The log-probabilities of one token. The row must not be at fault.
  TokenLogProbs log_probs_at(int64_t token) const;

  // Writes out[i] = log mu(i), contiguous.
  void write_log_probs(float* out) const;

 private:
  bool spread_, in_double_ = false;
  FloatRow float_row_;
  DoubleRow<RowPair> double_row_;
  RowPair row_{};
  RowAnswer answer_;
  std::vector<double> residual_;  // mass of max(mu - pi_S, 0) per block
};

}  // namespace trb::cpu
