// Where is f(beta) = target, given f, f', f'' at the two ends of a bracket?
//
// f itself is a step of width ~1/range(D) on hard rows, and Newton on it leaves the bracket. The logarithm of its
// curvature, l(beta) = log(f / beta^2), is gentle and finite at 0, so l is interpolated by a quintic Hermite polynomial
// H and  2 log beta + H(beta) = log target  is solved by bisection on log beta: scalars only, no read of the row.
#pragma once

#include <cmath>

#include "cumulants.h"

namespace trb {

struct LogNode {  // l and its derivatives at one beta
  double beta, l, l1, l2;
};

TRB_HD inline LogNode log_node(const Node& n) {
  const double slope = n.f1 / n.f;
  return {n.beta, ::log(n.f / (n.beta * n.beta)), slope - 2.0 / n.beta,
          n.f2 / n.f - slope * slope + 2.0 / (n.beta * n.beta)};
}

// The limit beta -> 0: f = A'' beta^2 / 2 + A''' beta^3 / 3 + ... The fourth cumulant is not measured (l2 = NaN).
TRB_HD inline LogNode log_node_at_zero(const Tilt& zero) {
  return {0.0, ::log(0.5 * zero.m2), 2.0 * zero.m3 / (3.0 * zero.m2), NAN};
}

TRB_HD inline double hermite(const LogNode& p, const LogNode& q, double beta) {
  const double h = q.beta - p.beta, s = (beta - p.beta) / h, r = 1.0 - s;
  const double v0 = p.l1 * h, v1 = q.l1 * h, w1 = q.l2 * h * h;
  // A missing l2 at the left is the one that makes the polynomial a quartic.
  const double w0 = std::isnan(p.l2) ? w1 + 12.0 * (q.l - p.l) - 6.0 * (v0 + v1) : p.l2 * h * h;
  const double left = p.l * (1.0 + s * (3.0 + 6.0 * s)) + s * (v0 * (1.0 + 3.0 * s) + 0.5 * w0 * s);
  const double right = q.l * (1.0 + r * (3.0 + 6.0 * r)) - r * (v1 * (1.0 + 3.0 * r) - 0.5 * w1 * r);
  return r * r * r * left + s * s * s * right;
}

// The beta in (p.beta, q.beta) where the interpolated f meets `target`; NaN if the data cannot be interpolated.
TRB_HD inline double hermite_root(const LogNode& p, const LogNode& q, double target) {
  const double goal = ::log(target);
  double low = ::log(p.beta > 0.0 ? p.beta : 1e-12 * q.beta), high = ::log(q.beta);
  if (!std::isfinite(p.l + p.l1 + q.l + q.l1 + q.l2)) return NAN;
  for (int i = 0; i < 52; ++i) {
    const double middle = 0.5 * (low + high);
    const bool above = 2.0 * middle + hermite(p, q, ::exp(middle)) > goal;
    (above ? high : low) = middle;
  }
  return ::exp(0.5 * (low + high));
}

}  // namespace trb
