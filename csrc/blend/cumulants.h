// Cumulants of D under mu_beta, and with them the divergence as a function of beta (method: arXiv 2605.31159).
//   A(beta) = log sum_C exp(t_beta),  A' = E[D],  A'' = Var[D],  A''' = E[(D - E D)^3]
//   f(beta) = KL(mu_beta || mu_0) = beta A' - (A(beta) - A(0)),   f' = beta A'' >= 0,   f'' = A'' + beta A'''
// f is measured within C; KL(mu_beta || pi_S) = f + phi with phi = -log pi_S(C), a floor no beta > 0 can go below.
#pragma once

#include "row.h"

namespace trb {

struct Node {  // what is known at one beta
  double beta = 0.0;
  double f = 0.0;
  double log_gain = 0.0;  // A(beta) - A(0), up to beta times the constant that D was centred by
  double mean = 0.0;      // A', centred alike
  double k2 = 0.0;        // A''
  double k3 = 0.0;        // A'''
  double k4 = NAN;        // A'''', where it is measured: at beta = 0

  TRB_HD double f1() const { return beta * k2; }
  TRB_HD double f2() const { return k2 + beta * k3; }
};

// From the mass of mu_beta relative to that of mu_0 and the central moments of D.
TRB_HD inline Node node_of(double beta, double log_gain, double mean, double k2, double k3) {
  const double f = beta * mean - log_gain;
  // Rounding may leave a tiny negative; a NaN must stay one, and counts as infeasible.
  return {beta, f < 0.0 ? 0.0 : f, log_gain, mean, k2 > 0.0 ? k2 : 0.0, k3, NAN};
}

// f = E[log mu_beta] - E[log mu_0] rather than from D: a finite logit of 1e30 would leave no digit of the other in D.
TRB_HD inline Node node_of(double beta, const Tilt& tilt, const Tilt& zero) {
  Node node = node_of(beta, tilt.weight.log() - zero.weight.log(), tilt.mean, tilt.m2, tilt.m3);
  const double f = tilt.negative_entropy() - (tilt.x - zero.weight.log());
  node.f = f < 0.0 ? 0.0 : f;
  return node;
}

// From raw moments S_k = sum w D^k of the weights w = e^{x + beta D - kappa}, with log_zero = A(0).
TRB_HD inline Node node_of_moments(double beta, const double* s, double kappa, double log_zero) {
  const double mean = s[1] / s[0], second = s[2] / s[0], third = s[3] / s[0];
  return node_of(beta, ::log(s[0]) + kappa - log_zero, mean, second - mean * mean,
                 third - mean * (3.0 * second - 2.0 * mean * mean));
}

// From the cancellation-free sums of float_sweep.h: with y, W, Q the sums of p v, p h, p g over that of p,
//   KL = (Q + y) / (1 + y + W) - log(1 + y + W),
// whose large terms are all non-negative, and which an inexact centre of D changes only in proportion to KL itself.
TRB_HD inline Node node_of_stable_sums(double beta, const double* s) {
  const double y = s[1] / s[0], w = s[2] / s[0], q = s[3] / s[0], mass = 1.0 + y + w;
  const double v1 = (q + y) / mass, v2 = s[4] / s[0] / mass, v3 = s[5] / s[0] / mass;
  const double k2 = v2 - v1 * v1, k3 = v3 - v1 * (3.0 * v2 - 2.0 * v1 * v1);
  Node node = node_of(beta, ::log1p(y + w), v1 / beta, k2 / (beta * beta), k3 / (beta * beta * beta));
  const double f = v1 - node.log_gain;
  node.f = f < 0.0 ? 0.0 : f;
  return node;
}

// sum of w e^{h D} over part of a row from its sums w D^k, four terms: the relative error is (h R)^4 / 24 <= 3e-7 for
// |h| R <= 0.05. All parts share the centre of D.
template <typename Real>
TRB_HD inline double shifted_mass(const Real* s, double h) {
  return s[0] + h * (s[1] + h * (0.5 * s[2] + h * s[3] / 6.0));
}

// The same from the stable sums, which are of v = beta D: `h` in units of beta.
template <typename Real>
TRB_HD inline double shifted_stable_mass(const Real* s, double h) {
  const double moments[4] = {static_cast<double>(s[0]) + s[1] + s[2], static_cast<double>(s[1]) + s[3],
                             static_cast<double>(s[4]), static_cast<double>(s[5])};
  return shifted_mass(moments, h);
}

}  // namespace trb
