// Finds where f(beta) = target, given f, f', f'' at the two ends of a bracket, without a read of the row.
//
// On hard rows f rises within a width of about 1 / range(D), and Newton's method on f would leave the bracket.
// l(beta) = log(f / beta^2) varies slowly and is finite at 0. A quintic Hermite polynomial H therefore interpolates l,
// and 2 log beta + H(beta) = log target  is solved for log beta.
//
// Real is the type of the search: double, or float on devices on which double is slow. The root only says which beta to
// sweep next, so its rounding does not enter the answer.
#pragma once

#include <cmath>

#include "cumulants.h"

namespace trb {

template <typename Real>
struct LogNode {  // l and its derivatives at one beta
  Real beta, l, l1, l2;
};

template <typename Real>
TRB_HD inline LogNode<Real> log_node(const Node& n) {
  // The logarithm's argument and derivatives, in double, because their differences cancel if beta is small.
  double inside, slope, curvature;
  if (n.beta == 0.0) {
    // The limit: f = k2 beta^2 / 2 + k3 beta^3 / 3 + k4 beta^4 / 8 + ...
    const double inverse = 1.0 / n.k2;
    inside = 0.5 * n.k2;
    slope = (2.0 / 3.0) * n.k3 * inverse;
    curvature = 0.5 * n.k4 * inverse - slope * slope;
  } else {
    const double inverse = 1.0 / n.f, per_beta = 1.0 / n.beta, growth = n.f1() * inverse;
    inside = n.f * per_beta * per_beta;
    slope = growth - 2.0 * per_beta;
    curvature = n.f2() * inverse - growth * growth + 2.0 * per_beta * per_beta;
  }
  return {static_cast<Real>(n.beta), std::log(static_cast<Real>(inside)), static_cast<Real>(slope),
          static_cast<Real>(curvature)};
}

// H as coefficients in s = (beta - p.beta) / (q.beta - p.beta).
template <typename Real>
struct Hermite {
  Real c[6];

  // The quintic, or the cubic from l and l' only. The difference of their roots bounds the error of either.
  TRB_HD Hermite(const LogNode<Real>& p, const LogNode<Real>& q, bool cubic) {
    const Real h = q.beta - p.beta, v0 = p.l1 * h, v1 = q.l1 * h, w1 = q.l2 * h * h, gap = q.l - p.l;
    c[0] = p.l;
    c[1] = v0;
    if (cubic) {
      c[2] = Real(3) * gap - Real(2) * v0 - v1;
      c[3] = v0 + v1 - Real(2) * gap;
      c[4] = c[5] = 0;
      return;
    }
    // Without l'' at the left end, the value is used that makes the polynomial a quartic.
    const Real w0 = p.l2 == p.l2 ? p.l2 * h * h : w1 + Real(12) * gap - Real(6) * (v0 + v1);
    c[2] = Real(0.5) * w0;
    c[3] = Real(10) * gap - Real(6) * v0 - Real(4) * v1 - Real(1.5) * w0 + Real(0.5) * w1;
    c[4] = Real(-15) * gap + Real(8) * v0 + Real(7) * v1 + Real(1.5) * w0 - w1;
    c[5] = Real(6) * gap - Real(3) * (v0 + v1) - Real(0.5) * (w0 - w1);
  }

  TRB_HD Real value(Real s) const { return c[0] + s * (c[1] + s * (c[2] + s * (c[3] + s * (c[4] + s * c[5])))); }
  TRB_HD Real slope(Real s) const {
    return c[1] + s * (Real(2) * c[2] + s * (Real(3) * c[3] + s * (Real(4) * c[4] + s * Real(5) * c[5])));
  }
};

// The beta in (p.beta, q.beta) at which the interpolated f equals `target`, by Newton's method in log beta that is kept
// inside a bracket. NaN if the data cannot be interpolated.
template <typename Real>
TRB_HD inline Real hermite_root(const LogNode<Real>& p, const LogNode<Real>& q, double target, bool cubic) {
  constexpr Real kClose = sizeof(Real) == sizeof(double) ? Real(1e-12) : Real(1e-6);
  const Real known = p.l + p.l1 + q.l + q.l1 + q.l2;
  if (!(known - known == Real(0))) return NAN;
  const Hermite<Real> curve(p, q, cubic);
  const Real goal = std::log(static_cast<Real>(target)), width = q.beta - p.beta;
  Real low = std::log(p.beta > Real(0) ? p.beta : Real(1e-12) * q.beta), high = std::log(q.beta);
  // Starts near the root: on the chord of l in log beta, or from the value of l at 0.
  Real z = p.beta > Real(0) ? low + (high - low) * (goal - p.l - Real(2) * low) / (q.l - p.l + Real(2) * (high - low))
                            : Real(0.5) * (goal - p.l);
  for (int i = 0; i < 60; ++i) {
    if (!(z > low && z < high)) z = Real(0.5) * (low + high);
    const Real beta = std::exp(z), s = (beta - p.beta) / width;
    const Real excess = Real(2) * z + curve.value(s) - goal, slope = Real(2) + curve.slope(s) * beta / width;
    (excess > Real(0) ? high : low) = z;
    const Real correction = excess / slope;
    if (std::fabs(correction) < kClose || high - low < kClose) break;
    z -= correction;
  }
  return std::exp(z);
}

}  // namespace trb
