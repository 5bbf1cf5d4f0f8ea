// Which exact sweep answers the solver's next question, and the frame in which its float32 exponents stay in range.
//
// Frame: x = (a - max a) / T, y = (b - max b) / T and D = y - x + offset - centre', so that
//   t_beta = (1 - beta) x + beta y = x + beta (D - offset),   D centred by a number the device chose for the row.
// The direct form sums exp(t_beta - kappa) and centres D once more, by its mean at beta as the bracket predicts it; the
// stable form (cumulants.h) needs neither and keeps the relative accuracy of small budgets.
#pragma once

#include "solver.h"

namespace trb {

enum class Form { kDirect, kFan, kStable };

struct SweepPlan {
  Form form;
  float beta, step;  // of a fan: beta + i step
  double centre;     // of D, in the row's frame
  double kappa;      // a lower bound of log sum exp(x + beta (D - centre)), from the tangents of the convex A
  bool in_range;     // else float32 exponents could overflow: the row is for double precision
};

constexpr double kLargestExponent = 60.0;  // of a weight relative to its sum's lower bound; e^88 overflows

// `log_zero`, `zero_mean`: log of the sum of e^x over C, and the mean of D under mu_0. `stable_below`: the budget from
// which down the direct form's rounding would show, nats.
template <typename Real>
TRB_HD inline SweepPlan plan_sweep(const Solver<Real>& solver, double log_zero, double zero_mean, double offset,
                                   double stable_below) {
  const Node &low = solver.low(), &high = solver.high();
  const double beta = static_cast<double>(solver.swept_beta()) + 2.0 * solver.step();  // the middle one of a fan
  const double t = (beta - low.beta) / (high.beta - low.beta);
  const double from_low = low.log_gain + (beta - low.beta) * low.mean;
  const double from_high = high.log_gain + (beta - high.beta) * high.mean;
  const double tangent = from_low > from_high ? from_low : from_high;
  const double chord = low.log_gain + t * (high.log_gain - low.log_gain);
  const bool small = solver.budget() < stable_below || high.f < stable_below;
  const Form form = solver.step() > 0.0f ? Form::kFan : small ? Form::kStable : Form::kDirect;
  const double centre = form == Form::kStable ? zero_mean : low.mean + (high.mean - low.mean) * t;
  const double overshoot = form == Form::kStable ? beta * (offset - centre) : chord - tangent;
  return {form,
          solver.swept_beta(),
          solver.step(),
          centre,
          log_zero + tangent - beta * centre,
          overshoot <= kLargestExponent};
}

}  // namespace trb
