// Defines the sums that one sweep over a row yields, as plain structs that every device shares, and merges those of the
// parts of a row.
//
// Notation, for student logits a, teacher logits b, temperature T:
//   x = a / T,  y = b / T,  D = y - x,  t_beta = (1 - beta) x + beta y,  mu_beta(i) = exp(t_beta(i)) / sum exp(t_beta)
//   S = {i : a_i > -inf},  C = {i : a_i > -inf and b_i > -inf} the common support; mu_beta lives on C for beta > 0, on
//   S at 0.
//
// A row is cut at multiples of kBlock, whatever the batch size and the number of threads, and its parts are merged in
// token order. Results are therefore bitwise independent of batch size, row order and threads.
#pragma once

#include <cmath>
#include <cstdint>

#include "../host_device.h"
#include "limits.h"

namespace trb {

TRB_HD inline int64_t block_count(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }

// t_beta. Exactly x at beta = 0 and y at beta = 1, and finite if x and y are.
TRB_HD inline double tilted_logit(double x, double y, double beta) { return (1.0 - beta) * x + beta * y; }

// sum of exp(v_i), kept as mass * exp(peak) so that it never overflows. The empty sum has peak -inf and mass 0.
struct LogSum {
  double peak = -INFINITY;
  double mass = 0.0;

  TRB_HD bool empty() const { return mass == 0.0; }
  TRB_HD double log() const { return peak + ::log(mass); }
  // The mass of a part of this sum, in units of this sum's exp(peak).
  TRB_HD double share(const LogSum& part) const { return part.empty() ? 0.0 : part.mass * ::exp(part.peak - peak); }

  TRB_HD void merge(const LogSum& next) {
    if (next.empty()) return;
    if (empty()) {
      *this = next;
    } else if (next.peak <= peak) {
      mass += next.mass * ::exp(next.peak - peak);
    } else {
      mass = mass * ::exp(peak - next.peak) + next.mass;
      peak = next.peak;
    }
  }
};

// The distribution mu_beta over C or part of it: its mass and the central moments of D under it. Central moments,
// because logits are defined up to a constant, D may therefore carry any offset, and raw moments would cancel.
struct Tilt {
  LogSum weight;       // of exp(t_beta)
  double mean = 0.0;   // E[D]
  double m2 = 0.0;     // E[(D - mean)^2]
  double m3 = 0.0;     // E[(D - mean)^3]
  double below = 0.0;  // E[t_beta] - weight.peak
  double x = 0.0;      // E[x]

  // log sum exp(t_{beta + h}) for small h, by the four terms that shifted_mass (cumulants.h) has.
  TRB_HD double log_mass_shifted_by(double h) const {
    return weight.log() + h * (mean + h * (0.5 * m2 + h * m3 / 6.0));
  }

  // E[log of this distribution's own probabilities] <= 0.
  TRB_HD double negative_entropy() const { return below - ::log(weight.mass); }

  // Adds one token of weight e^t. The same as merging a distribution of one token, with one exponential.
  TRB_HD void add(double t, double d, double at_x) {
    const double peak = t > weight.peak ? t : weight.peak, lower = weight.peak - peak;
    const double kept = lower < 0.0 ? weight.mass * ::exp(lower) : weight.mass, w = lower < 0.0 ? 1.0 : ::exp(t - peak);
    const double mass = kept + w, q = w / mass, p = 1.0 - q, gap = d - mean;
    m3 = p * (m3 + q * gap * ((p - q) * gap * gap - 3.0 * m2));
    m2 = p * (m2 + q * gap * gap);
    mean += q * gap;
    below = (kept > 0.0 ? p * (below + lower) : 0.0) + q * (t - peak);
    x = p * x + q * at_x;
    weight = {peak, mass};
  }

  // Adds the distribution of the tokens that follow, by the mixture formulas for central moments.
  TRB_HD void merge(const Tilt& next) {
    if (next.weight.empty()) return;
    if (weight.empty()) {
      *this = next;
      return;
    }
    LogSum both = weight;
    both.merge(next.weight);
    const double q = both.share(next.weight) / both.mass, p = 1.0 - q, gap = next.mean - mean;
    const double third = p * m3 + q * next.m3 + 3.0 * p * q * gap * (next.m2 - m2) + p * q * (p - q) * gap * gap * gap;
    m2 = p * m2 + q * next.m2 + p * q * gap * gap;
    m3 = third;
    mean += q * gap;
    below = p * (below + (weight.peak - both.peak)) + q * (next.below + (next.weight.peak - both.peak));
    x = p * x + q * next.x;
    weight = both;
  }
};

// The sums of the first sweep: the distributions at beta = 0 and beta = 1 and both models' normalizers.
struct Ends {
  LogSum student;                              // over S
  LogSum teacher;                              // over {b > -inf}
  Tilt zero;                                   // mu_0 restricted to C
  Tilt one;                                    // mu_1
  double min_d = INFINITY, max_d = -INFINITY;  // of D over C
  bool fault = false;                          // some logit is NaN or +inf

  TRB_HD void merge(const Ends& next) {
    student.merge(next.student);
    teacher.merge(next.teacher);
    zero.merge(next.zero);
    one.merge(next.one);
    min_d = next.min_d < min_d ? next.min_d : min_d;
    max_d = next.max_d > max_d ? next.max_d : max_d;
    fault = fault || next.fault;
  }
};

}  // namespace trb
