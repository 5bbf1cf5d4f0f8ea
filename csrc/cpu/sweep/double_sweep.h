// Declares the sums over one block (at most kBlock tokens) of both models' rows, in double precision. A block's data
// stay in the first-level cache.
#pragma once

#include "../../solver/row_sums.h"
#include "../logits.h"

namespace trb::cpu {

// Both models' largest logits, finite. The sweeps use x = (a - student) / T and y = (b - teacher) / T, so that an
// offset of the logits costs no digits of a mean.
struct Maxima {
  double student, teacher;
};

// The first sweep of a block: both normalizers, and the moments of D at beta = 0 and beta = 1. Two exponentials per
// token.
Ends sweep_ends(const RowPair& row, const Maxima& maxima, int64_t block);

// The moments of D under mu_beta. One exponential per token.
Tilt sweep_tilt(const RowPair& row, const Maxima& maxima, int64_t block, double beta);

}  // namespace trb::cpu
