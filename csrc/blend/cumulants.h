// Cumulants of D under mu_beta, and with them the divergence as a function of beta (method: arXiv 2605.31159).
//   A(beta) = log sum_C exp(t_beta),  A' = E[D],  A'' = Var[D],  A''' = E[(D - E D)^3]
//   f(beta) = KL(mu_beta || mu_0) = beta A' - (A(beta) - A(0)),   f' = beta A'' >= 0,   f'' = A'' + beta A'''
// f is measured within C; KL(mu_beta || pi_S) = f + phi with phi = -log pi_S(C), a floor no beta > 0 can go below.
#pragma once

#include "row.h"

namespace trb {

struct Node {  // f and its derivatives at one beta
  double beta, f, f1, f2;
};

TRB_HD inline Node node_at(double beta, const Tilt& tilt, const Tilt& zero) {
  const double f = beta * tilt.mean - (tilt.weight.log() - zero.weight.log());
  // Rounding may leave a tiny negative; a NaN must stay one, and counts as infeasible.
  return {beta, f < 0.0 ? 0.0 : f, beta * tilt.m2, tilt.m2 + beta * tilt.m3};
}

// phi = -log pi_S(C) >= 0; exactly 0 when the teacher masks nothing, because both sums are then the same additions.
TRB_HD inline double support_floor(const Ends& ends) {
  const double phi = ends.student.log() - ends.zero.weight.log();
  return phi > 0.0 ? phi : 0.0;
}

}  // namespace trb
