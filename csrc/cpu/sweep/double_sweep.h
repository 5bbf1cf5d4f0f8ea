// Declares the sums over one block (at most kBlock tokens) of both models' rows, in double precision. A block's data
// stay in the first-level cache. A row is a RowPair of logits, or an OutcomePair of the few outcomes of a top-k
// teacher.
#pragma once

#include "../../solver/row_sums.h"
#include "../logits.h"
#include "../outcomes.h"

namespace trb::cpu {

// The zeros of both models' logits, finite. The sweeps use x = (a - student) / T and y = (b - teacher) / T, so that an
// offset of the logits costs no digits of a mean.
struct Origin {
  double student, teacher;
};

// A token's t_beta and its logits.
struct WeighedToken {
  double t = -INFINITY;
  Origin logits{};
};

// The token of a block with the largest t_beta, the first of several; t is -inf if the models have none in common.
template <typename Row>
WeighedToken likeliest_token(const Row& row, const Origin& origin, int64_t block, double beta);

// The first sweep of a block: both normalizers, and the moments of D at beta = 0 and beta = 1. Two exponentials per
// token.
template <typename Row>
Ends sweep_ends(const Row& row, const Origin& origin, int64_t block);

// The moments of D under mu_beta. One exponential per token.
template <typename Row>
Tilt sweep_tilt(const Row& row, const Origin& origin, int64_t block, double beta);

}  // namespace trb::cpu
