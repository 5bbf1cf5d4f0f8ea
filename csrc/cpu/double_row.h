// Solves a row in double precision. The rare rows whose logits lie too far apart for the float32 sweeps need it, and
// tests check those sweeps by it. The outcomes of a top-k teacher are always solved
// in double precision, because they are few.
#pragma once

#include <vector>

#include "row_answer.h"
#include "sweep/double_sweep.h"

namespace trb::cpu {

template <typename Row>  // RowPair or OutcomePair
class DoubleRow {
 public:
  DoubleRow(int64_t vocab, bool spread) : blocks_(block_count(vocab)), spread_(spread) {}

  // `answer` must hold the maxima that make the frame, and the number of sweeps so far.
  void solve(const Row& row, double epsilon, RowAnswer* answer);

 private:
  int64_t blocks_;
  bool spread_;
  std::vector<Ends> ends_;   // of the first sweep, per block
  std::vector<Tilt> tilts_;  // of the last sweep, per block
};

}  // namespace trb::cpu
