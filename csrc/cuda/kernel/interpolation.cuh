// Finds where f(beta) = target by the interpolation of csrc/solver/hermite.h, on the lanes of one warp.
//
// The curve is the same: l(beta) = log(f / beta^2) by a quintic, or by a quartic if l'' is unknown at the left end. Its
// root is not found by Newton's method, whose steps would wait for one another, but by cutting the bracket twice
// into 33 parts, one cut per lane, and by one step of Newton's method from there. Everything is in float and in units
// of log 2: the root only says which beta to sweep next.
#pragma once

#include "approximations.cuh"
#include "sweep/sweep_terms.cuh"
#include "warp.cuh"

namespace trb::cuda {

struct LogNode {  // l and its derivatives at one beta, in units of log 2
  float beta, l, l1, l2;
};

// The node at beta > 0 from f and the cumulants of D. The difference is taken in double, because it cancels if beta is
// small.
__device__ __forceinline__ LogNode log_node(float beta, double f, float k2, float k3) {
  const double moved = static_cast<double>(beta * k2) * beta - 2.0 * f;  // beta^2 f l' = beta f' - 2 f
  const float value = static_cast<float>(f), inverse = reciprocal(value), per_beta = reciprocal(beta);
  const float slope = static_cast<float>(moved) * inverse, bend = beta * beta * beta * (k3 * inverse);
  return {beta, log2_of(value) - 2.0f * log2_of(beta), kLog2eFloat * slope * per_beta,
          kLog2eFloat * (bend - slope * (3.0f + slope)) * per_beta * per_beta};
}

// The node at beta = 0 or 1.
__device__ __forceinline__ LogNode log_node_of_end(bool at_one, float f, float k2, float k3) {
  const float value = select(at_one, f, 0.5f * k2), inverse = reciprocal(value);
  const float third = k3 * inverse, slope = fmaf(-2.0f, f, k2) * inverse;
  return {select(at_one, 1.0f, 0.0f), log2_of(value), kLog2eFloat * select(at_one, slope, third * (1.0f / 3)),
          select(at_one, kLog2eFloat * (third - slope * (3.0f + slope)), NAN)};
}

// All lanes of a warp: the beta in (p.beta, q.beta) at which the interpolated f equals `target`. NaN if the data cannot
// be interpolated.
__device__ __forceinline__ float root_of_interpolation(const LogNode& p, const LogNode& q, float target, int lane) {
  // 1. The curve, by its coefficients in s = (beta - p.beta) / width.
  const float width = q.beta - p.beta, per_width = reciprocal(width), gap = q.l - p.l;
  const float v0 = p.l1 * width, v1 = q.l1 * width, w1 = q.l2 * width * width;
  // Without l'' at the left end, the value is used that makes the polynomial a quartic.
  const float w0 = select(p.l2 == p.l2, p.l2 * width * width, w1 + 12.0f * gap - 6.0f * (v0 + v1));
  const float c2 = 0.5f * w0, c3 = 10.0f * gap - 6.0f * v0 - 4.0f * v1 - 1.5f * w0 + 0.5f * w1;
  const float c4 = -15.0f * gap + 8.0f * v0 + 7.0f * v1 + 1.5f * w0 - w1;
  const float c5 = 6.0f * gap - 3.0f * (v0 + v1) - 0.5f * (w0 - w1);
  // 2. The root of 2 z + l - log2(target) in z = log2(beta), from the cuts of two rounds. Those of the first are the
  // denser, the closer they lie to the right end: the bracket may span 40 powers of 2, and most roots lie in the last.
  const float constant = p.l - log2_of(target), right = log2_of(q.beta);
  const float left = log2_of(select(p.beta > 0.0f, p.beta, 1e-12f * q.beta)), span = right - left;
  const auto cut = [&](float k) { return fmaf(-span * (1.0f / (33 * 33)), (33.0f - k) * (33.0f - k), right); };
  const float own = static_cast<float>(lane + 1);
  float low = left, step = 0.0f, z = cut(own), corrected = 0.0f;
#pragma unroll
  for (int round = 0; round < 2; ++round) {
    const float beta = ex2(z), s = (beta - p.beta) * per_width;
    const float square = s * s, upper = fmaf(square, c5, fmaf(s, c4, c3));
    const float excess = fmaf(s, fmaf(square, upper, fmaf(s, c2, v0)), fmaf(2.0f, z, constant));
    const int below = __clz(__brev(__ballot_sync(kAllLanes, excess > 0.0f)));  // how many cuts lie below the root
    const float cuts = static_cast<float>(below);
    if (round == 0) {
      low = cut(cuts);
      step = (cut(cuts + 1.0f) - low) * (1.0f / 33);
      z = fmaf(step, own, low);
    } else {
      // 3. A step of Newton's method from the cut above the root.
      const float slope = fmaf(square, fmaf(square, 5.0f * c5, fmaf(s, 4.0f * c4, 3.0f * c3)), fmaf(s, 2.0f * c2, v0));
      corrected = z - excess * reciprocal(fmaf(slope, per_width * beta * static_cast<float>(kLn2), 2.0f));
      corrected = __shfl_sync(kAllLanes, corrected, min(below, kWarp - 1));
      low = fmaf(step, cuts, low);
    }
  }
  z = select((corrected > low) & (corrected < low + step), corrected, fmaf(0.5f, step, low));
  const float known = p.l + p.l1 + q.l + q.l1 + q.l2;
  return select(known - known == 0.0f, ex2(z), NAN);
}

}  // namespace trb::cuda
