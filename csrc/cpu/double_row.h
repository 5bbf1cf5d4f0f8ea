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

  // `answer` must hold the maxima, and the number of sweeps so far.
  //
  // Between logits of 1e30 (masks, offsets) a difference has digits only if it is small. Tokens that share mu's mass
  // have nearly the same t_beta. Unless beta is 1, or huge numbers happen to balance, their logits are then close as
  // well, and keep their digits from an origin among them. The maxima may belong to tokens without mass. From a distant
  // origin the solve still finds which tokens have the mass, but not how they share it.
  void solve(const Row& row, double epsilon, RowAnswer* answer);

 private:
  void solve_from_origin(const Row& row, double epsilon, RowAnswer* answer);
  WeighedToken likeliest(const Row& row, const RowAnswer& answer);

  int64_t blocks_;
  bool spread_;
  std::vector<Ends> ends_;               // of the first sweep, per block
  std::vector<Tilt> tilts_;              // of the last sweep, per block
  std::vector<WeighedToken> likeliest_;  // per block
  LogSum student_, teacher_;             // of the last solve, from its origin
};

}  // namespace trb::cpu
