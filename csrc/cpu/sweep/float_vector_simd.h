// Defines vectors of TRB_LANES floats in the compilers' portable vector types, and the elementary functions that the
// sweeps need. Everything here is local to the file that includes it, because each one is compiled for another
// instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if TRB_LANES == 16
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kLanes = TRB_LANES;

typedef float Float __attribute__((vector_size(4 * TRB_LANES)));
typedef int32_t Int __attribute__((vector_size(4 * TRB_LANES)));
typedef uint32_t Uint __attribute__((vector_size(4 * TRB_LANES)));
typedef double Double __attribute__((vector_size(8 * TRB_LANES)));

#define TRB_INLINE inline __attribute__((always_inline))

TRB_INLINE Float splat(float value) { return Float{} + value; }
// Both return b if either is NaN, as the machine's instructions do. Written as intrinsics, because compilers do not
// always find the instruction in the comparison.
#if TRB_LANES == 16
TRB_INLINE Float larger(Float a, Float b) { return _mm512_max_ps(a, b); }
TRB_INLINE Float smaller(Float a, Float b) { return _mm512_min_ps(a, b); }
#else
TRB_INLINE Float larger(Float a, Float b) { return a > b ? a : b; }
TRB_INLINE Float smaller(Float a, Float b) { return a < b ? a : b; }
#endif
TRB_INLINE Int bits(Float a) { return reinterpret_cast<Int>(a); }

// 2^t for t <= 127, with a relative error of at most 1.7e-7 (1.5 ulp) whose mean is zero, because a mean error would
// enter every divergence. Below t = -126 the result is at most 2^-126.
//
// Adding 1.5 * 2^23 rounds t to an integer, which then is in the low bits. The integer is added to the exponent of a
// degree-6 minimax polynomial. With AVX-512, adding 1.5 * 2^18 rounds t to 32nds, two registers hold the table of
// 2^(j / 32), and degree 2 suffices. kRoots[j] is 2^(j / 32) less the bits that j itself adds when the rounded t is
// shifted into the exponent. Four of the roots are not rounded to nearest, so that the mean error is zero.
template <bool kClamp = true>
TRB_INLINE Float exp2_of(Float t) {
  if (kClamp) t = larger(splat(-126.0f), t);
#if TRB_LANES == 16
  static const int32_t kRoots[32] = {0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980e, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3,
                                     0x3f78f4f0, 0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b,
                                     0x3f75583f, 0x3f7523f6, 0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a,
                                     0x3f75b9bd, 0x3f76248c, 0x3f76a81e, 0x3f7744fd, 0x3f77fbb7, 0x3f78ccdf, 0x3f79b907,
                                     0x3f7ac0c7, 0x3f7be4b9, 0x3f7d257d, 0x3f7e83b3};
  const Float magic = splat(393216.0f), shifted = t + magic, r = t - (shifted - magic);
  const __m512i index = reinterpret_cast<__m512i>(shifted);
  const __m512i root = _mm512_permutex2var_epi32(_mm512_loadu_si512(kRoots), index, _mm512_loadu_si512(kRoots + 16));
  const Float power = reinterpret_cast<Float>(reinterpret_cast<Int>(root) + (bits(shifted) << 18));
  return power + power * (r * (r * 0.2402265f + 0.6931573f));
#else
  const Float magic = splat(12582912.0f), shifted = t + magic, r = t - (shifted - magic);
  Float p = splat(1.5353362e-4f);
  p = p * r + 1.3398875e-3f;
  p = p * r + 9.618437e-3f;
  p = p * r + 5.5503324e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.931472e-1f;
  p = p * r + 1.0f;
  return reinterpret_cast<Float>(bits(p) + (bits(shifted) << 23));
#endif
}

// The natural logarithm of a float, to 1.5 ulp; NaN below 0. For x = 2^e m, 2/3 <= m < 4/3 and f = m - 1, it is
// e log 2 + log(1 + f), by a degree-7 minimax polynomial for (log(1 + f) - f + f^2 / 2) / f^3.
TRB_INLINE Float log_of(Float x) {
  const Int subnormal = x < 1.17549435e-38f;
  const Float scaled = subnormal ? x * 16777216.0f : x;
  // Unsigned, because the subtraction overflows for the bits of a negative x.
  const Uint raw = reinterpret_cast<Uint>(scaled);
  const Int exponent = reinterpret_cast<Int>(raw - 0x3f2aaaabu) >> 23;
  const Float f = reinterpret_cast<Float>(raw - (reinterpret_cast<Uint>(exponent) << 23)) - 1.0f, f2 = f * f;
  const Float e = __builtin_convertvector(exponent, Float) - (subnormal ? splat(24.0f) : Float{});
  Float p = f * -1.28916787e-1f + 1.39844398e-1f;
  p = p * f - 1.21842623e-1f;
  p = p * f + 1.40058683e-1f;
  p = p * f - 1.66804873e-1f;
  p = p * f + 2.00104060e-1f;
  p = p * f - 2.49997977e-1f;
  p = p * f + 3.33332160e-1f;
  // log 2 is split into two parts, so that e times the first is exact.
  Float result = e * 0.693145752f + (f + (p * (f * f2) - 0.5f * f2 + e * 1.42860677e-6f));
  result = x == 0.0f ? splat(-__builtin_inff()) : result;
  return (x > 0.0f) & (x < __builtin_inff()) | (x == 0.0f) ? result : x < 0.0f ? splat(__builtin_nanf("")) : x;
}

template <int kWidth>
TRB_INLINE double total_of(const double* lane) {
  if constexpr (kWidth == 1)
    return lane[0];
  else {
    typedef double Part __attribute__((vector_size(4 * kWidth)));
    Part low, high;
    std::memcpy(&low, lane, sizeof low);
    std::memcpy(&high, lane + kWidth / 2, sizeof high);
    low += high;
    return total_of<kWidth / 2>(reinterpret_cast<const double*>(&low));
  }
}

TRB_INLINE double total(const Double& v) { return total_of<TRB_LANES>(reinterpret_cast<const double*>(&v)); }

TRB_INLINE void flush(Double& sum, Float& part) {
  sum += __builtin_convertvector(part, Double);
  part = Float{};
}

TRB_INLINE float highest(Float v) {
  float result = v[0];
  for (int64_t lane = 1; lane < kLanes; ++lane) result = v[lane] > result ? v[lane] : result;
  return result;
}

TRB_INLINE float lowest(Float v) { return -highest(-v); }

TRB_INLINE Float keep(Int mask, Float value) { return reinterpret_cast<Float>(mask & bits(value)); }

}  // namespace
