// Where is f(beta) = target, given f, f', f'' at the two ends of a bracket?
//
// f itself is a step of width ~1/range(D) on hard rows, and Newton on it leaves the bracket. The logarithm of its
// curvature, l(beta) = log(f / beta^2), is gentle and finite at 0, so l is interpolated by a quintic Hermite polynomial
// H and  2 log beta + H(beta) = log target  is solved for log beta: scalars only, no read of the row.
#pragma once

#include <cmath>

#include "cumulants.h"

namespace trb {

struct LogNode {  // l and its derivatives at one beta
  double beta, l, l1, l2;
};

TRB_HD inline LogNode log_node(const Node& n) {
  if (n.beta == 0.0) {
    // The limit: f = k2 beta^2 / 2 + k3 beta^3 / 3 + k4 beta^4 / 8 + ...
    const double slope = 2.0 * n.k3 / (3.0 * n.k2);
    return {0.0, ::log(0.5 * n.k2), slope, n.k4 / (2.0 * n.k2) - slope * slope};
  }
  const double slope = n.f1() / n.f;
  return {n.beta, ::log(n.f / (n.beta * n.beta)), slope - 2.0 / n.beta,
          n.f2() / n.f - slope * slope + 2.0 / (n.beta * n.beta)};
}

// H as coefficients in s = (beta - p.beta) / (q.beta - p.beta).
struct Hermite {
  double c[6];

  // Quintic, or from l and l' alone: their difference tells how far the root can be trusted.
  TRB_HD Hermite(const LogNode& p, const LogNode& q, bool cubic) {
    const double h = q.beta - p.beta, v0 = p.l1 * h, v1 = q.l1 * h, w1 = q.l2 * h * h, gap = q.l - p.l;
    c[0] = p.l;
    c[1] = v0;
    if (cubic) {
      c[2] = 3.0 * gap - 2.0 * v0 - v1;
      c[3] = v0 + v1 - 2.0 * gap;
      c[4] = c[5] = 0.0;
      return;
    }
    // A missing l2 at the left is the one that makes the polynomial a quartic.
    const double w0 = std::isnan(p.l2) ? w1 + 12.0 * gap - 6.0 * (v0 + v1) : p.l2 * h * h;
    c[2] = 0.5 * w0;
    c[3] = 10.0 * gap - 6.0 * v0 - 4.0 * v1 - 1.5 * w0 + 0.5 * w1;
    c[4] = -15.0 * gap + 8.0 * v0 + 7.0 * v1 + 1.5 * w0 - w1;
    c[5] = 6.0 * gap - 3.0 * (v0 + v1) - 0.5 * (w0 - w1);
  }

  TRB_HD double value(double s) const { return c[0] + s * (c[1] + s * (c[2] + s * (c[3] + s * (c[4] + s * c[5])))); }
  TRB_HD double slope(double s) const {
    return c[1] + s * (2.0 * c[2] + s * (3.0 * c[3] + s * (4.0 * c[4] + s * 5.0 * c[5])));
  }
};

// The beta in (p.beta, q.beta) where the interpolated f meets `target`; NaN if the data cannot be interpolated. Newton
// in log beta, kept inside a bracket.
TRB_HD inline double hermite_root(const LogNode& p, const LogNode& q, double target, bool cubic) {
  if (!std::isfinite(p.l + p.l1 + q.l + q.l1 + q.l2)) return NAN;
  const Hermite curve(p, q, cubic);
  const double goal = ::log(target), width = q.beta - p.beta;
  double low = ::log(p.beta > 0.0 ? p.beta : 1e-12 * q.beta), high = ::log(q.beta);
  // The chord of l in log beta, or its value at 0: near the root in either case.
  double z = p.beta > 0.0 ? low + (high - low) * (goal - p.l - 2.0 * low) / (q.l - p.l + 2.0 * (high - low))
                          : 0.5 * (goal - p.l);
  for (int i = 0; i < 60; ++i) {
    if (!(z > low && z < high)) z = 0.5 * (low + high);
    const double beta = ::exp(z), s = (beta - p.beta) / width;
    const double excess = 2.0 * z + curve.value(s) - goal, slope = 2.0 + curve.slope(s) * beta / width;
    (excess > 0.0 ? high : low) = z;
    const double step = excess / slope;
    if (::fabs(step) < 1e-12 || high - low < 1e-12) break;
    z -= step;
  }
  return ::exp(z);
}

}  // namespace trb
