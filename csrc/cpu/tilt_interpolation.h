// Interpolates the moments of D at beta = 1/4 and 3/4 from those at 0, 1/2 and 1, for tokens whose D has a small range.
//
// A(beta) = log sum exp(x + beta D) and its derivatives, the cumulants of D, are smooth if no token's weight changes
// by many orders of magnitude between two nodes. A and three derivatives at three nodes determine a polynomial of
// degree 11, whose values and derivatives approximate what a sweep at the nodes between would have summed. A and two
// derivatives determine one of degree 8, and the difference of the two bounds the error. Only the first sweep uses
// this, whose nodes narrow the bracket and do not decide.
#pragma once

#include <cmath>

namespace trb::cpu {

// S_k = sum w D^k, k = 0..4.
struct RawMoments {
  double s[5] = {};
};

// The polynomial that equals A and its first kOrder - 1 derivatives at beta = 0, 1/2 and 1.
template <int kOrder>
class TiltInterpolation {
 public:
  // `sums` holds S_0..S_3 at the three nodes. The weights at beta have a factor e^{-beta offset}, because D is
  // centered.
  TiltInterpolation(const double* const (&sums)[3], double offset) : offset_(offset) {
    double table[kCount];
    for (int node = 0; node < 3; ++node) {
      const double* s = sums[node];
      const double mean = s[1] / s[0], second = s[2] / s[0], third = s[3] / s[0];
      const double taylor[4] = {std::log(s[0]) + at(node * kOrder) * offset, mean, (second - mean * mean) / 2.0,
                                (third - mean * (3.0 * second - 2.0 * mean * mean)) / 6.0};
      for (int k = 0; k < kOrder; ++k) taylor_[node][k] = taylor[k];
    }
    // Newton's divided differences. Between equal nodes they are the Taylor coefficients.
    for (int i = 0; i < kCount; ++i) table[i] = taylor_[i / kOrder][0];
    for (int k = 0; k < kCount; ++k) {
      coefficient_[k] = table[0];
      for (int i = 0; i + k + 1 < kCount; ++i) {
        const double width = at(i + k + 1) - at(i);
        table[i] = width > 0.0 ? (table[i + 1] - table[i]) / width : taylor_[i / kOrder][k + 1];
      }
    }
  }

  // The moments at beta, in the unit of `sums`.
  RawMoments moments(double beta) const {
    double t[5] = {};  // Taylor coefficients at beta, by Horner's rule
    for (int k = kCount - 1; k >= 0; --k) {
      for (int j = 4; j > 0; --j) t[j] = t[j] * (beta - at(k)) + t[j - 1];
      t[0] = t[0] * (beta - at(k)) + coefficient_[k];
    }
    const double m = t[1], m2 = 2.0 * t[2], m3 = 6.0 * t[3], m4 = 24.0 * t[4] + 3.0 * m2 * m2;
    const double mass = std::exp(t[0] - beta * offset_);
    return {{mass, mass * m, mass * (m2 + m * m), mass * (m3 + m * (3.0 * m2 + m * m)),
             mass * (m4 + m * (4.0 * m3 + m * (6.0 * m2 + m * m)))}};
  }

 private:
  static constexpr int kCount = 3 * kOrder;
  static double at(int i) { return 0.5 * (i / kOrder); }

  double offset_;
  double taylor_[3][kOrder];
  double coefficient_[kCount];
};

}  // namespace trb::cpu
