// One row from logits to (beta, kl), to a token, and to log mu. The scratch is a few numbers per block of 1024 tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "../blend/solver.h"
#include "sweep.h"

namespace trb::cpu {

struct Draw {
  int64_t token;
  float log_prob, student_log_prob, teacher_log_prob;
};

class RowSolver {
 public:
  // `spread`: sweep the blocks of the row on all threads (few rows) instead of on the calling one (many rows). The
  // result is bitwise the same: blocks are summed apart and merged in token order either way.
  RowSolver(int64_t vocab, bool spread) : ends_(block_count(vocab)), tilts_(block_count(vocab)), spread_(spread) {}

  // Finds beta for the row; the three below refer to the row last solved.
  Solver solve(const RowPair& row, double epsilon);

  // Inverse CDF in token order at u in [0, 1): the first token whose cumulative mass exceeds u. Reads one block again.
  Draw sample(double uniform) const;

  // out[i] = log mu(i), with element stride 1.
  void write_log_probs(float* out) const;

 private:
  template <typename F>
  void over_blocks(const F& body) const;
  LogSum block_weight(int64_t block) const;

  RowPair row_{};
  Status status_ = Status::kFault;
  double beta_ = 0.0;
  Ends whole_;
  LogSum weight_;  // of mu_beta, the whole row
  std::vector<Ends> ends_;
  std::vector<Tilt> tilts_;
  bool spread_;
};

}  // namespace trb::cpu
