// Computes reciprocals and logarithms from the approximations of the special-function unit. They have no branch and no
// call, unlike the correctly rounded ones, so that a decision is short.
#pragma once

#include "../../solver/limits.h"
#include "warp.cuh"

namespace trb::cuda {

// 1 / x to 23 bits.
__device__ __forceinline__ float reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// Rounds x > 0 down to 20 bits, from its upper word: a conversion would use the double-precision unit. The result is 0
// if x is below the smallest normal float.
__device__ __forceinline__ float coarse(double x) {
  constexpr int kBiases = (1023 - 127) << 20;  // of the exponents
  return __int_as_float(max(__double2hiint(x) - kBiases, 0) << 3);
}

// The logarithm to base 2, to 22 bits; -inf at 0 and below the normal numbers.
__device__ __forceinline__ float log2_of(float x) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// 1 / x to 20 bits, for a normal x.
__device__ __forceinline__ double rough_reciprocal(double x) {
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(x));
  return r;
}

// A step of Newton's method, which doubles the correct bits of r = 1 / x.
__device__ __forceinline__ double refined(double x, double r) { return fma(r, fma(-x, r, 1.0), r); }

// 1 / x to 40 bits, for a normal x. NaN if x or 1 / x is 0 or infinite.
__device__ __forceinline__ double reciprocal(double x) { return refined(x, rough_reciprocal(x)); }

// A logarithm in parts. `series` is ready last, so that a sum with other terms begins with the others.
struct LogParts {
  double exponent, twice;  // in units of log 2, and in nats
  float series;            // nats

  // sum + log
  __device__ __forceinline__ double add_to(double sum) const { return fma(exponent, kLn2, sum) + twice + series; }
  // The same in float; the terms before `series` may cancel.
  __device__ __forceinline__ float add_to_as_float(double sum) const {
    return static_cast<float>(fma(exponent, kLn2, sum) + twice) + series;
  }
};

// log(n / d) for positive normal numbers; `difference` is n - d, which the caller may know to more digits than a
// subtraction would leave. The absolute error is 1e-9, and the relative one 1e-7 if n / d is close to 1.
//
// With n / d = 2^e q, q within 0.63 and 1.59, this is e log 2 + 2 atanh(s) at s = (q - 1) / (q + 1). Only the first
// term of the series needs double precision.
__device__ __forceinline__ LogParts log_of_ratio(double n, double d, double difference) {
  const int high = __double2hiint(n), exponent = (high - __double2hiint(d) + (1 << 19)) >> 20;
  const double scaled = __hiloint2double(high - (exponent << 20), __double2loint(n));
  const double s = select(exponent == 0, difference, scaled - d) * reciprocal(scaled + d);
  const float t = static_cast<float>(s), square = t * t, fourth = square * square;
  const float first = fmaf(square, 2.0f / 5, 2.0f / 3), second = fmaf(square, 2.0f / 9, 2.0f / 7),
              third = fmaf(square, 2.0f / 13, 2.0f / 11);
  return {static_cast<double>(exponent), s + s, t * square * fmaf(fourth, fmaf(fourth, third, second), first)};
}

// log(x) of a positive normal number, with an absolute error of 1e-9.
__device__ __forceinline__ LogParts log_of(double x) { return log_of_ratio(x, 1.0, x - 1.0); }

}  // namespace trb::cuda
