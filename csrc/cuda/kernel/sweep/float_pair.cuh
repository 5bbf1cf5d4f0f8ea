// Two float32 numbers in 64 bits, for sweeps that take two tokens at a time. Devices of compute capability 10 add and
// multiply both by one instruction, each rounded as by itself. For others ptxas makes two, and sums would take twice
// the registers, so their sweeps take one token at a time. Both are one source: it is written for a Number, which is
// FloatPair or float.
#pragma once

#include <cstdint>

namespace trb::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1100
#define TRB_PAIRED_ARITHMETIC
#endif

__device__ __forceinline__ float ex2(float t) {
  float w;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(w) : "f"(t));
  return w;
}
__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ float total(float number) { return number; }
__device__ __forceinline__ bool exceeds(float number, float limit) { return number > limit; }
__device__ __forceinline__ float kept(bool yes, float number) { return yes ? number : 0.0f; }

#ifdef TRB_PAIRED_ARITHMETIC

struct BoolPair {
  bool low, high;
};
__device__ __forceinline__ BoolPair operator&(BoolPair a, BoolPair b) { return {a.low && b.low, a.high && b.high}; }
__device__ __forceinline__ BoolPair operator!(BoolPair a) { return {!a.low, !a.high}; }

struct FloatPair {
  uint64_t bits = 0;

  FloatPair() = default;
  __device__ __forceinline__ FloatPair(float low, float high) {
    asm("mov.b64 %0, {%1, %2};" : "=l"(bits) : "f"(low), "f"(high));
  }
  __device__ __forceinline__ explicit FloatPair(float both) : FloatPair(both, both) {}

  __device__ __forceinline__ float low() const {
    float low;
    asm("{ .reg .f32 high; mov.b64 {%0, high}, %1; }" : "=f"(low) : "l"(bits));
    return low;
  }
  __device__ __forceinline__ float high() const {
    float high;
    asm("{ .reg .f32 low; mov.b64 {low, %0}, %1; }" : "=f"(high) : "l"(bits));
    return high;
  }
};

__device__ __forceinline__ FloatPair operator+(FloatPair a, FloatPair b) {
  FloatPair c;
  asm("add.rn.f32x2 %0, %1, %2;" : "=l"(c.bits) : "l"(a.bits), "l"(b.bits));
  return c;
}
__device__ __forceinline__ FloatPair operator-(FloatPair a, FloatPair b) {
  FloatPair c;
  asm("sub.rn.f32x2 %0, %1, %2;" : "=l"(c.bits) : "l"(a.bits), "l"(b.bits));
  return c;
}
__device__ __forceinline__ FloatPair operator*(FloatPair a, FloatPair b) {
  FloatPair c;
  asm("mul.rn.f32x2 %0, %1, %2;" : "=l"(c.bits) : "l"(a.bits), "l"(b.bits));
  return c;
}
__device__ __forceinline__ FloatPair fused(FloatPair a, FloatPair b, FloatPair c) {
  FloatPair d;
  asm("fma.rn.f32x2 %0, %1, %2, %3;" : "=l"(d.bits) : "l"(a.bits), "l"(b.bits), "l"(c.bits));
  return d;
}
__device__ __forceinline__ FloatPair ex2(FloatPair t) { return {ex2(t.low()), ex2(t.high())}; }
__device__ __forceinline__ float total(FloatPair number) { return number.low() + number.high(); }
__device__ __forceinline__ BoolPair exceeds(FloatPair number, float limit) {
  return {number.low() > limit, number.high() > limit};
}
__device__ __forceinline__ FloatPair kept(BoolPair yes, FloatPair number) {
  return {kept(yes.low, number.low()), kept(yes.high, number.high())};
}

#endif

}  // namespace trb::cuda
