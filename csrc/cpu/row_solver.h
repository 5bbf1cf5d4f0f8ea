// One row from logits to (beta, kl), to a token, and to log mu. The scratch is some hundred bytes per block of 1024
// tokens.
#pragma once

#include <cstdint>

#include "double_row.h"
#include "float_row.h"

namespace trb::cpu {

struct Draw {
  int64_t token;
  float log_prob, student_log_prob, teacher_log_prob;
};

class RowSolver {
 public:
  // `spread`: sweep the blocks of a row on all threads (few rows) instead of on the calling one (many rows).
  RowSolver(int64_t vocab, bool spread, const SweepTable& sweeps)
      : spread_(spread), float_row_(vocab, spread, sweeps), double_row_(vocab, spread) {}

  // Finds beta for the row; the two below refer to the row last solved.
  const RowAnswer& solve(const RowPair& row, double epsilon);

  // Inverse CDF in token order at u in [0, 1): the first token whose cumulative mass exceeds u. Reads one block again.
  Draw sample(double uniform) const;

  // out[i] = log mu(i), with element stride 1.
  void write_log_probs(float* out) const;

 private:
  bool spread_, in_double_ = false;
  FloatRow float_row_;
  DoubleRow double_row_;
  RowPair row_{};
  RowAnswer answer_;
};

}  // namespace trb::cpu
