// One row from logits to (beta, kl), to a token, and to log mu. The scratch is some hundred bytes per block of 1024
// tokens.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "double_row.h"
#include "float_row.h"

namespace trb::cpu {

struct TokenLogProbs {  // nats
  double student = NAN, teacher = NAN, behavior = NAN;
};

struct Draw {
  int64_t token = -1;
  TokenLogProbs log_probs;
};

class RowSolver {
 public:
  // `spread`: sweep the blocks of a row on all threads (few rows) instead of on the calling one (many rows).
  RowSolver(int64_t vocab, bool spread, const SweepTable& sweeps)
      : spread_(spread), float_row_(vocab, spread, sweeps), double_row_(vocab, spread) {}

  // Finds beta for the row; all below refer to the row last solved.
  const RowAnswer& solve(const RowPair& row, double epsilon);

  // Inverse CDF of mu in token order at u in [0, 1): the first token whose cumulative mass exceeds u. Reads one block
  // again. Token -1 and NaN for a row at fault, or any other u.
  Draw sample(double uniform) const;

  // The same of max(mu - pi_S, 0), which makes a refused draft's law up to mu; of mu where rounding leaves nothing of
  // it. Reads the row again.
  Draw sample_residual(double uniform);

  // Of one token of a row without a fault.
  TokenLogProbs log_probs_at(int64_t token) const;

  // out[i] = log mu(i), with element stride 1.
  void write_log_probs(float* out) const;

 private:
  bool spread_, in_double_ = false;
  FloatRow float_row_;
  DoubleRow double_row_;
  RowPair row_{};
  RowAnswer answer_;
  std::vector<double> residual_;  // of each block
};

}  // namespace trb::cpu
