// Plans the exact sweep that the solver asks for: its form, and a frame in which its float32 exponents stay in range.
//
// Frame: x = (a - max a) / T, y = (b - max b) / T and D = y - x + offset - center', so that
//   t_beta = (1 - beta) x + beta y = x + beta (D - offset),   D centered by a number that the device chose for the row.
// The direct form sums exp(t_beta - kappa) and centers D a second time, by the mean at beta that the bracket predicts.
// The stable form (cumulants.h) needs neither, and is accurate relative to KL itself if the headroom is small.
#pragma once

#include "solver.h"

namespace trb {

enum class Form { kDirect, kFan, kStable };

struct SweepPlan {
  Form form;
  float beta, spacing;  // a fan sweeps at beta + i spacing, i = 0..4
  double center;        // of D, in the frame above
  double kappa;         // a lower bound of log sum exp(x + beta (D - center)), by tangents of A, which is convex
  bool in_range;        // else float32 exponents could overflow, and the row is solved in double precision
};

constexpr double kLargestExponent = 60.0;  // of a weight relative to kappa; e^88 overflows

// `log_zero` is the log of the sum of e^x over C, `zero_mean` the mean of D under mu_0, and `stable_below` the headroom
// in nats below which the direct form's rounding would show.
TRB_HD inline SweepPlan plan_sweep(const Solver& solver, double log_zero, double zero_mean, double offset,
                                   double stable_below) {
  const Node &low = solver.low(), &high = solver.high();
  const double beta = static_cast<double>(solver.swept_beta()) + 2.0 * solver.spacing();  // the middle one of a fan
  const double t = (beta - low.beta) / (high.beta - low.beta);
  const double from_low = low.log_gain + (beta - low.beta) * low.mean;
  const double from_high = high.log_gain + (beta - high.beta) * high.mean;
  const double tangent = from_low > from_high ? from_low : from_high;
  const double chord = low.log_gain + t * (high.log_gain - low.log_gain);
  const bool small = solver.headroom() < stable_below || high.f < stable_below;
  const Form form = solver.spacing() > 0.0f ? Form::kFan : small ? Form::kStable : Form::kDirect;
  const double center = form == Form::kStable ? zero_mean : low.mean + (high.mean - low.mean) * t;
  const double overshoot = form == Form::kStable ? beta * (offset - center) : chord - tangent;
  return {form,
          solver.swept_beta(),
          solver.spacing(),
          center,
          log_zero + tangent - beta * center,
          overshoot <= kLargestExponent};
}

}  // namespace trb
