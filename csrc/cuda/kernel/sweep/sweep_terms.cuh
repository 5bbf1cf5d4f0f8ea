// Defines the float32 terms that each sweep adds to its sums for one pair of logits (a, b).
//
// Exponentials are ex2.approx (relative error 2^-22), so exponents are in units of log 2. A frame's shifts are whole
// numbers, so that the frames of different blocks differ by exact powers of two.
//
//   ends     2^{ta} d^k and 2^{tb} d^k, k = 0..3, for ta = a s - shift_a, tb = b s - shift_b, d = tb - ta. They are
//            the moments at beta = 0 and beta = 1. Also the mass of tokens that the other model masks.
//            15 instructions, 2 exponentials
//   direct   w d^k, k = 0..3, for d = (b - a) - center (formed from raw logits, before anything is rounded) and
//            w = 2^{a s + slope d - shift}. 10 instructions, 1 exponential
//   stable   the stable form's sums of csrc/solver/cumulants.h with v = beta (D - center). Also w itself, from whose
//            mass a token is drawn, because p + p v + p h would cancel. 23 instructions, 2 exponentials
//   residual max(mu - pi_S, 0) = max(p (e^v - 1), 0) with v = log mu - log pi_S = (beta / T) d - offset, from which the
//            token that replaces a rejected draft is drawn
//
// The masked form leaves out tokens that either model masks. It also leaves out tokens so far below the maximum that
// their weight is 0 in any arithmetic, because their finite logits would still make 0 * inf. Both forms add the same
// bits for the same tokens: no product is left to the compiler's choice of a fused multiply-add.
#pragma once

#include <cmath>
#include <type_traits>

#include "../../../solver/limits.h"
#include "float_pair.cuh"

namespace trb::cuda {

constexpr float kNoWeight = -1e30f;  // exponents below this have weight 0

// The range of b - a over the common support, for masked rows, whose scan cannot tell it.
struct RangeOfD {
  float high = -INFINITY, low = INFINITY;

  __device__ __forceinline__ void add(bool yes, float d) {
    if (!yes) return;
    high = fmaxf(high, d);
    low = fminf(low, d);
  }
#ifdef TRB_PAIRED_ARITHMETIC
  __device__ __forceinline__ void add(BoolPair yes, FloatPair d) {
    add(yes.low, d.low());
    add(yes.high, d.high());
  }
#endif
};

// Each sweep has kSums sums, the last kMasked of which only a masked row has. kUnused more make the number of the
// others a power of two. If kPaired, it can take two tokens as one Number.

struct EndsSweep {
  static constexpr int kSums = 10, kMasked = 2, kUnused = 0;
  static constexpr bool kPaired = true;
  struct Frame {
    float scale;  // log2(e) / T
    float shift_student, shift_teacher;
  };

  template <bool kMasked, typename T, typename Number>
  static __device__ __forceinline__ void add(Number a, Number b, const Frame& frame, Number* s, RangeOfD* range) {
    const Number scale(frame.scale);
    const Number ta = fused(a, scale, Number(-frame.shift_student)), tb = fused(b, scale, Number(-frame.shift_teacher));
    Number p = ex2(ta), q = ex2(tb), d = tb - ta;
    if (kMasked) {
      const auto in_student = exceeds(a, -INFINITY), in_teacher = exceeds(b, -INFINITY);
      range->add(in_student & in_teacher, b - a);
      s[8] = s[8] + kept(in_student & !in_teacher, p);
      s[9] = s[9] + kept(in_teacher & !in_student, q);
      const auto common = exceeds(ta, kNoWeight) & exceeds(tb, kNoWeight);
      p = kept(common, p);
      q = kept(common, q);
      d = kept(common, d);
    }
    const Number d2 = d * d, d3 = d2 * d;
    s[0] = s[0] + p;
    s[1] = fused(p, d, s[1]);
    s[2] = fused(p, d2, s[2]);
    s[3] = fused(p, d3, s[3]);
    s[4] = s[4] + q;
    s[5] = fused(q, d, s[5]);
    s[6] = fused(q, d2, s[6]);
    s[7] = fused(q, d3, s[7]);
  }
};

struct ExactFrame {
  float scale;  // log2(e) / T
  float shift;
  float center;                      // of the difference d; for the direct form and for drawing a token
  float slope;                       // direct: beta times scale
  float tilt, offset;                // stable, residual: v = tilt difference - offset, nats; tilt = beta / T
  float base_student, base_teacher;  // the maxima, for float32 logits
};

// b - a, less a constant of the row. Exact for most pairs of 16-bit logits. Float32 logits are taken relative to their
// maxima first, because a large offset between the models would cost digits otherwise.
template <typename T, typename Number>
__device__ __forceinline__ Number difference(Number a, Number b, const ExactFrame& frame) {
  if constexpr (std::is_same_v<T, float>) {
    return (b - Number(frame.base_teacher)) - (a - Number(frame.base_student));
  } else {
    return b - a;
  }
}

template <typename Number>
__device__ __forceinline__ auto has_weight(Number a, Number b, const ExactFrame& frame) {
  const Number scale(frame.scale);
  return exceeds(a * scale, kNoWeight) & exceeds(b * scale, kNoWeight);
}

struct DirectSweep {
  static constexpr int kSums = 4, kMasked = 0, kUnused = 0;
  static constexpr bool kPaired = true;
  using Frame = ExactFrame;

  template <typename Number>
  static __device__ __forceinline__ Number weight(Number a, Number d, const Frame& frame) {
    return ex2(fused(d, Number(frame.slope), fused(a, Number(frame.scale), Number(-frame.shift))));
  }

  template <bool kMasked, typename T, typename Number>
  static __device__ __forceinline__ void add(Number a, Number b, const Frame& frame, Number* s, RangeOfD*) {
    Number d = difference<T>(a, b, frame) - Number(frame.center), w = weight(a, d, frame);
    if (kMasked) {
      const auto common = has_weight(a, b, frame);
      w = kept(common, w);
      d = kept(common, d);
    }
    const Number d2 = d * d;
    s[0] = s[0] + w;
    s[1] = fused(w, d, s[1]);
    s[2] = fused(w, d2, s[2]);
    s[3] = fused(w, d2 * d, s[3]);
  }
};

struct StableSweep {
  static constexpr int kSums = 7, kMasked = 0, kUnused = 1;
  static constexpr bool kPaired = false;
  using Frame = ExactFrame;

  template <bool kMasked, typename T>
  static __device__ __forceinline__ void add(float a, float b, const Frame& frame, float* s, RangeOfD*) {
    const float t = fmaf(a, frame.scale, -frame.shift);
    float v = fmaf(difference<T>(a, b, frame), frame.tilt, -frame.offset);
    float p = ex2(t), w = ex2(fmaf(v, kLog2eFloat, t));  // not p e^v, which overflows if p is tiny
    if (kMasked) {
      const bool common = has_weight(a, b, frame);
      p = common ? p : 0.0f;
      w = common ? w : 0.0f;
      v = common ? v : 0.0f;
    }
    // h(v) = e^v - 1 - v by its Taylor series if v is small, because the difference would cancel (relative error 2e-6
    // at |v| = 0.35).
    const float v2 = v * v, pv = __fmul_rn(p, v);
    float series = fmaf(v, 1.0f / 720, 1.0f / 120);
    series = fmaf(v, series, 1.0f / 24);
    series = fmaf(v, series, 1.0f / 6);
    series = fmaf(v, series, 0.5f);
    const bool small = fabsf(v) < 0.35f;
    const float curved = __fmul_rn(pv, v * series);
    // e^v - 1 is not computed as h + v, because for v far below 0 that sum would be only rounding.
    const float pg = small ? curved + pv : w - p, ph = small ? curved : pg - pv;
    s[0] += p;
    s[1] += pv;
    s[2] += ph;
    s[3] = fmaf(v, pg, s[3]);
    s[4] = fmaf(w, v2, s[4]);
    s[5] = fmaf(w * v2, v, s[5]);
    s[6] += w;
  }
};

// v is centered twice, by `center` exactly and then by `offset`, which is small then. This keeps the digits of v near
// 0, whose sign decides which tokens can be drawn.
struct ResidualSweep {
  static constexpr int kSums = 1, kMasked = 0, kUnused = 0;
  static constexpr bool kPaired = false;
  using Frame = ExactFrame;

  template <typename T>
  static __device__ __forceinline__ float weight(float a, float b, const Frame& frame) {
    const float t = fmaf(a, frame.scale, -frame.shift);
    const float v = fmaf(difference<T>(a, b, frame) - frame.center, frame.tilt, -frame.offset);
    const float p = ex2(t), w = ex2(fmaf(v, kLog2eFloat, t));
    // e^v - 1 by its Taylor series if v is small, because the difference would cancel (relative error 4e-7 at v =
    // 0.35).
    float series = fmaf(v, 1.0f / 720, 1.0f / 120);
    series = fmaf(v, series, 1.0f / 24);
    series = fmaf(v, series, 1.0f / 6);
    series = fmaf(v, series, 0.5f);
    series = fmaf(v, series, 1.0f);
    const float gain = v < 0.35f ? __fmul_rn(p, v * series) : w - p;
    return v > 0.0f && has_weight(a, b, frame) ? gain : 0.0f;
  }

  template <bool kMasked, typename T>
  static __device__ __forceinline__ void add(float a, float b, const Frame& frame, float* s, RangeOfD*) {
    s[0] += weight<T>(a, b, frame);
  }
};

}  // namespace trb::cuda
