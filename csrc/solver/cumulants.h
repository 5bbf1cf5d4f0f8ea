// Computes the cumulants of D under mu_beta, and from them the divergence as a function of beta (arXiv 2605.31159).
//   A(beta) = log sum_C exp(t_beta),  A' = E[D],  A'' = Var[D],  A''' = E[(D - E D)^3]
//   f(beta) = KL(mu_beta || mu_0) = beta A' - (A(beta) - A(0)),   f' = beta A'' >= 0,   f'' = A'' + beta A'''
// f is the divergence within C. The divergence from the student is KL(mu_beta || pi_S) = f + phi with phi = -log
// pi_S(C), so that no beta > 0 comes below phi.
#pragma once

#include "row_sums.h"

namespace trb {

struct Node {  // f and the cumulants at one beta
  double beta = 0.0;
  double f = 0.0;
  double log_gain = 0.0;  // A(beta) - A(0), less beta times the constant that D is centered by
  double mean = 0.0;      // A', of the centered D
  double k2 = 0.0;        // A''
  double k3 = 0.0;        // A'''
  double k4 = NAN;        // A'''', which is known only at beta = 0, else NaN

  TRB_HD double f1() const { return beta * k2; }
  TRB_HD double f2() const { return k2 + beta * k3; }
};

// The node from log_gain, the log of the mass of mu_beta relative to that of mu_0, and the central moments of D.
TRB_HD inline Node node_of(double beta, double log_gain, double mean, double k2, double k3) {
  const double f = beta * mean - log_gain;
  // Rounding may make f slightly negative. A NaN must stay a NaN, which counts as infeasible.
  return {beta, f < 0.0 ? 0.0 : f, log_gain, mean, k2 > 0.0 ? k2 : 0.0, k3, NAN};
}

// The node from double-precision sums. f = E[log mu_beta] - E[log mu_0] does not use D: if one model has a finite logit
// of 1e30, no digit of the other model's logit is left in D.
TRB_HD inline Node node_of(double beta, const Tilt& tilt, const Tilt& zero) {
  Node node = node_of(beta, tilt.weight.log() - zero.weight.log(), tilt.mean, tilt.m2, tilt.m3);
  const double f = tilt.negative_entropy() - (tilt.x - zero.weight.log());
  node.f = f < 0.0 ? 0.0 : f;
  return node;
}

// The node from raw moments S_k = sum w D^k. `log_gain` is Node's: log S_0 plus the log of the factor that the weights
// leave out, less A(0).
TRB_HD inline Node node_of_moments(double beta, const double* s, double log_gain) {
  const double inverse = 1.0 / s[0], mean = s[1] * inverse, second = s[2] * inverse, third = s[3] * inverse;
  return node_of(beta, log_gain, mean, second - mean * mean, third - mean * (3.0 * second - 2.0 * mean * mean));
}

// The node from the stable form's sums (cpu/sweep/float_sweep.h, cuda/kernel/sweep/). With y, W, Q the sums of
// p v, p h, p g divided by that of p,
//   KL = (Q + y) / (1 + y + W) - log(1 + y + W).
// No large terms cancel, because all of them are non-negative, and an error in the center of D changes KL only in
// proportion to KL itself.
TRB_HD inline Node node_of_stable_sums(double beta, const double* s) {
  const double inverse = 1.0 / s[0], y = s[1] * inverse, w = s[2] * inverse, q = s[3] * inverse;
  const double per_mass = 1.0 / (1.0 + y + w), per_beta = 1.0 / beta;
  const double v1 = (q + y) * per_mass, v2 = s[4] * inverse * per_mass, v3 = s[5] * inverse * per_mass;
  const double k2 = v2 - v1 * v1, k3 = v3 - v1 * (3.0 * v2 - 2.0 * v1 * v1);
  Node node =
      node_of(beta, ::log1p(y + w), v1 * per_beta, k2 * per_beta * per_beta, k3 * per_beta * per_beta * per_beta);
  const double f = v1 - node.log_gain;
  node.f = f < 0.0 ? 0.0 : f;
  return node;
}

// sum of w e^{h D} over part of a row, by four terms from its sums of w D^k. The relative error is (h R)^4 / 24 <= 3e-7
// for |h| R <= kLargestShift. All parts of a row use the same center of D.
template <typename Real>
TRB_HD inline double shifted_mass(const Real* s, double h) {
  return s[0] + h * (s[1] + h * (0.5 * s[2] + h * s[3] / 6.0));
}

// The same from the stable form's sums, which hold powers of v = beta D, and from `weight`, the sum of w. `h` is in
// units of beta.
template <typename Real>
TRB_HD inline double shifted_stable_mass(const Real* s, double weight, double h) {
  const double moments[4] = {weight, static_cast<double>(s[1]) + s[3], static_cast<double>(s[4]),
                             static_cast<double>(s[5])};
  return shifted_mass(moments, h);
}

}  // namespace trb
