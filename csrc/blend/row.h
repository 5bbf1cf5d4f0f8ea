// What one sweep over a row yields: plain structs shared by every device, and how parts of a row are joined.
//
// Notation, for student logits a, teacher logits b, temperature T:
//   x = a / T,  y = b / T,  D = y - x,  t_beta = (1 - beta) x + beta y,  mu_beta(i) = exp(t_beta(i)) / sum exp(t_beta)
//   S = {i : a_i > -inf},  C = {i : a_i > -inf and b_i > -inf} the common support; mu_beta lives on C for beta > 0, on
//   S at 0.
//
// A row is cut into blocks at multiples of kBlock, whatever the batch or the number of threads, and the blocks are
// merged in token order: results are bitwise independent of batch size, row order and threads.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define TRB_HD __host__ __device__
#else
#define TRB_HD
#endif

namespace trb {

constexpr int64_t kBlock = 1024;  // tokens; also the unit that sampling reads again

TRB_HD inline int64_t block_count(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }

// sum of exp(v_i) as mass * exp(peak): never overflows, and 0 is (peak -inf, mass 0).
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

// The distribution mu_beta over (part of) C: its mass and the central moments of D under it. Central, not raw: D may
// carry any constant offset (logits are defined up to one), and raw moments would cancel.
struct Tilt {
  LogSum weight;       // of exp(t_beta)
  double mean = 0.0;   // E[D]
  double m2 = 0.0;     // E[(D - mean)^2]
  double m3 = 0.0;     // E[(D - mean)^3]
  double below = 0.0;  // E[t_beta] - weight.peak
  double x = 0.0;      // E[x]

  // E[log of this distribution's own probabilities] <= 0.
  TRB_HD double negative_entropy() const { return below - ::log(weight.mass); }

  // Joins one token of weight e^t: `merge` of a single atom, with one exponential.
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

  // Joins the distribution of the next tokens (the mixture formulas for central moments).
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

// The first sweep settles beta = 0 and beta = 1, and yields the normalisers of both models.
struct Ends {
  LogSum student;                              // over S
  LogSum teacher;                              // over {b > -inf}
  Tilt zero;                                   // mu_0 restricted to C
  Tilt one;                                    // mu_1
  double min_d = INFINITY, max_d = -INFINITY;  // of D over C
  bool fault = false;                          // NaN or +inf seen

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
