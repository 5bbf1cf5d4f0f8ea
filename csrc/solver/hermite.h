// Finds where f(beta) = target, given f, f', f'' at the two ends of a bracket, without a read of the row.
//
// On hard rows f rises within a width of about 1 / range(D), and Newton's method on f would leave the bracket.
// l(beta) = log(f / beta^2) varies slowly and is finite at 0. A quintic Hermite polynomial H therefore interpolates l,
// and 2 log beta + H(beta) = log target  is solved for log beta.
#pragma once

#include <cmath>

#include "cumulants.h"

namespace trb {

struct LogNode {  // l and its derivatives at one beta
  double beta, l, l1, l2;
};

TRB_HD inline LogNode log_node(const Node& n) {
  // The logarithm's argument and derivatives.
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
  return {n.beta, std::log(inside), slope, curvature};
}

// H as coefficients in s = (beta - p.beta) / (q.beta - p.beta).
struct Hermite {
  double c[6];

  // The quintic, or the cubic from l and l' only. The difference of their roots bounds the error of either.
  TRB_HD Hermite(const LogNode& p, const LogNode& q, bool cubic) {
    const double h = q.beta - p.beta, v0 = p.l1 * h, v1 = q.l1 * h, w1 = q.l2 * h * h, gap = q.l - p.l;
    c[0] = p.l;
    c[1] = v0;
    if (cubic) {
      c[2] = 3.0 * gap - 2.0 * v0 - v1;
      c[3] = v0 + v1 - 2.0 * gap;
      c[4] = c[5] = 0;
      return;
    }
    // Without l'' at the left end, the value is used that makes the polynomial a quartic.
    const double w0 = p.l2 == p.l2 ? p.l2 * h * h : w1 + 12.0 * gap - 6.0 * (v0 + v1);
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

// The beta in (p.beta, q.beta) at which the interpolated f equals `target`, by Newton's method in log beta that is kept
// inside a bracket. NaN if the data cannot be interpolated.
TRB_HD inline double hermite_root(const LogNode& p, const LogNode& q, double target, bool cubic) {
  constexpr double kClose = 1e-12;
  const double known = p.l + p.l1 + q.l + q.l1 + q.l2;
  if (!(known - known == 0.0)) return NAN;
  const Hermite curve(p, q, cubic);
  const double goal = std::log(target), width = q.beta - p.beta;
  double low = std::log(p.beta > 0.0 ? p.beta : 1e-12 * q.beta), high = std::log(q.beta);
  // Starts near the root: on the chord of l in log beta, or from the value of l at 0.
  double z = p.beta > 0.0 ? low + (high - low) * (goal - p.l - 2.0 * low) / (q.l - p.l + 2.0 * (high - low))
                          : 0.5 * (goal - p.l);
  for (int i = 0; i < 60; ++i) {
    if (!(z > low && z < high)) z = 0.5 * (low + high);
    const double beta = std::exp(z), s = (beta - p.beta) / width;
    const double excess = 2.0 * z + curve.value(s) - goal, slope = 2.0 + curve.slope(s) * beta / width;
    (excess > 0.0 ? high : low) = z;
    const double correction = excess / slope;
    if (std::fabs(correction) < kClose || high - low < kClose) break;
    z -= correction;
  }
  return std::exp(z);
}

}  // namespace trb
