// A row in double precision: for the rare ones whose logits spread too far for the float32 sweeps, and as their check.
#pragma once

#include <vector>

#include "double_sweep.h"
#include "row_answer.h"

namespace trb::cpu {

class DoubleRow {
 public:
  DoubleRow(int64_t vocab, bool spread) : blocks_(block_count(vocab)), spread_(spread) {}

  // `answer` as FloatRow leaves it: with the maxima of a row without a fault, and the sweeps spent.
  void solve(const RowPair& row, double epsilon, RowAnswer* answer);

 private:
  int64_t blocks_;
  bool spread_;
  std::vector<Ends> ends_;   // of each block, first sweep
  std::vector<Tilt> tilts_;  // of each block, last sweep
};

}  // namespace trb::cpu
