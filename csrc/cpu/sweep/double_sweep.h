// Declares the sums over one block (at most kBlock tokens) of both models' rows, in double precision. A block's data
// stay in the first-level cache. A row is a RowPair of logits, or an OutcomePair of the few outcomes of a top-k
// teacher.
#pragma once

#include "../../solver/row_sums.h"
#include "../logits.h"
#include "../outcomes.h"

namespace trb::cpu {

// Both models' largest logits, finite. The sweeps use x = (a - student) / T and y = (b - teacher) / T, so that an
// offset of the logits costs no digits of a mean.
struct Maxima {
  double student, teacher;
};

// The largest logits of a block's tokens that both models have; -inf if there are none. A token that only one model has
// may lie so far above them that its logit less any of theirs keeps no digit of theirs.
Maxima common_maxima(const RowPair& row, int64_t block);

// The first sweep of a block: both normalizers, and the moments of D at beta = 0 and beta = 1. Two exponentials per
// token.
template <typename Row>
Ends sweep_ends(const Row& row, const Maxima& maxima, int64_t block);

// The moments of D under mu_beta. One exponential per token.
template <typename Row>
Tilt sweep_tilt(const Row& row, const Maxima& maxima, int64_t block, double beta);

}  // namespace trb::cpu
