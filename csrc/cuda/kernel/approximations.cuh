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

// 1 / x to about the last bit, for a normal x. NaN if x or 1 / x is 0 or infinite.
__device__ __forceinline__ double reciprocal(double x) { return refined(x, refined(x, rough_reciprocal(x))); }

// log(n / d) for positive normal numbers; `difference` is n - d, which the caller may know to more digits than a
// subtraction would leave. The absolute error is 1e-9, and the relative one 1e-7 if n / d is close to 1.
//
// With n / d = 2^e q, q within 0.63 and 1.59, this is e log 2 + 2 atanh(s) at s = (q - 1) / (q + 1). Only the first
// term of the series needs double precision.
__device__ __forceinline__ double log_of_ratio(double n, double d, double difference) {
  const int high = __double2hiint(n), exponent = (high - __double2hiint(d) + (1 << 19)) >> 20;
  const double scaled = __hiloint2double(high - (exponent << 20), __double2loint(n)), sum = scaled + d;
  const double s = select(exponent == 0, difference, scaled - d) * refined(sum, rough_reciprocal(sum));
  const float t = static_cast<float>(s), square = t * t;
  float series = fmaf(square, 2.0f / 13, 2.0f / 11);
  series = fmaf(square, series, 2.0f / 9);
  series = fmaf(square, series, 2.0f / 7);
  series = fmaf(square, series, 2.0f / 5);
  series = fmaf(square, series, 2.0f / 3);
  return fma(static_cast<double>(exponent), kLn2, 2.0 * s) + t * square * series;
}

// log(x) of a positive normal number, with an absolute error of 1e-9.
__device__ __forceinline__ double log_of(double x) { return log_of_ratio(x, 1.0, x - 1.0); }

}  // namespace trb::cuda
