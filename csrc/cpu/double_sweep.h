// Sums over one block (at most kBlock tokens) of a row pair. Everything a block needs stays in the first-level cache.
#pragma once

#include "../blend/row.h"
#include "logits.h"

namespace trb::cpu {

// Finite: x = (a - student) / T and y = (b - teacher) / T, so that an offset of the logits costs no digits of a mean.
struct Maxima {
  double student, teacher;
};

// The first sweep: both normalisers, and the moments of D at beta = 0 and beta = 1. Two exponentials per token.
Ends sweep_ends(const RowPair& row, const Maxima& maxima, int64_t block);

// The moments of D under mu_beta. One exponential per token.
Tilt sweep_tilt(const RowPair& row, const Maxima& maxima, int64_t block, double beta);

}  // namespace trb::cpu
