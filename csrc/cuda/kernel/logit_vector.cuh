// Converts 16 bytes of logits to float32, and finds the extremes of both models' logits.
//
// The extremes take 6 instructions per pair of logits for float32, and as many for two packed 16-bit pairs (4 on
// devices whose minima and maxima have three inputs). They are both maxima, in which a NaN (kept by max.NaN) or +inf
// marks the row as faulty, and the range of b - a. The range is rounded outward, because the error bound of the
// solver's final shift rests on it. The range and the lowest student logit tell whether any logit of either model is
// masked, or nearly.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace trb::cuda {

__device__ __forceinline__ float max_or_nan(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}

struct Extremes {
  float max_student, max_teacher;  // NaN if any logit is NaN
  float lowest;                    // student logit
  float high, low;                 // of teacher - student logits
};

constexpr int kVectorBytes = 16;

template <typename T>
struct LogitVector;

template <>
struct LogitVector<float> {
  static constexpr int kTokens = 4;

  static __device__ __forceinline__ void unpack(uint4 v, float (&out)[kTokens]) {
    out[0] = __uint_as_float(v.x);
    out[1] = __uint_as_float(v.y);
    out[2] = __uint_as_float(v.z);
    out[3] = __uint_as_float(v.w);
  }

  class Scan {
   public:
    __device__ __forceinline__ void add(uint4 student, uint4 teacher) {
      float a[kTokens], b[kTokens];
      unpack(student, a);
      unpack(teacher, b);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const float d = b[i] - a[i];
        found_.max_student = max_or_nan(found_.max_student, a[i]);
        found_.max_teacher = max_or_nan(found_.max_teacher, b[i]);
        found_.lowest = fminf(found_.lowest, a[i]);
        found_.high = fmaxf(found_.high, d);
        found_.low = fminf(found_.low, d);
      }
    }
    __device__ __forceinline__ Extremes result() const { return found_; }

   private:
    Extremes found_{-INFINITY, -INFINITY, INFINITY, -INFINITY, INFINITY};
  };
};

// The two 16-bit types differ in how two logits are unpacked and in the rounding of a difference.
template <typename Pair>
struct Packed;

template <>
struct Packed<__nv_bfloat162> {
  static constexpr float kRounding = 0x1p-8f;  // relative, of a difference
  static __device__ __forceinline__ float low(uint32_t bits) { return __uint_as_float(bits << 16); }
  static __device__ __forceinline__ float high(uint32_t bits) { return __uint_as_float(bits & 0xffff0000u); }
};

template <>
struct Packed<__half2> {
  static constexpr float kRounding = 0x1p-11f;
  static __device__ __forceinline__ float low(uint32_t bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  }
  static __device__ __forceinline__ float high(uint32_t bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits >> 16)));
  }
};

template <typename Pair>
struct PackedVector {
  static constexpr int kTokens = 8;

  static __device__ __forceinline__ void unpack(uint4 v, float (&out)[kTokens]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = Packed<Pair>::low(words[i]);
      out[2 * i + 1] = Packed<Pair>::high(words[i]);
    }
  }

  class Scan {
   public:
    __device__ __forceinline__ void add(uint4 student, uint4 teacher) {
      const uint32_t a[4] = {student.x, student.y, student.z, student.w};
      const uint32_t b[4] = {teacher.x, teacher.y, teacher.z, teacher.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Pair p = pair_of(a[i]), q = pair_of(b[i]), d = __hsub2(q, p);
        max_student_ = __hmax2_nan(max_student_, p);
        max_teacher_ = __hmax2_nan(max_teacher_, q);
        lowest_ = __hmin2(lowest_, p);
        high_ = __hmax2(high_, d);
        low_ = __hmin2(low_, d);
      }
    }
    __device__ __forceinline__ Extremes result() const {
      const float high = fmaxf(first(high_), second(high_)), low = fminf(first(low_), second(low_));
      return {max_or_nan(first(max_student_), second(max_student_)),
              max_or_nan(first(max_teacher_), second(max_teacher_)), fminf(first(lowest_), second(lowest_)),
              high > -INFINITY ? fmaf(fabsf(high), Packed<Pair>::kRounding, high) : high,
              low < INFINITY ? fmaf(fabsf(low), -Packed<Pair>::kRounding, low) : low};
    }

   private:
    static __device__ __forceinline__ Pair pair_of(uint32_t bits) { return reinterpret_cast<Pair&>(bits); }
    static __device__ __forceinline__ uint32_t bits_of(Pair pair) { return reinterpret_cast<uint32_t&>(pair); }
    static __device__ __forceinline__ float first(Pair pair) { return Packed<Pair>::low(bits_of(pair)); }
    static __device__ __forceinline__ float second(Pair pair) { return Packed<Pair>::high(bits_of(pair)); }
    static __device__ __forceinline__ Pair all(float value);

    Pair max_student_ = all(-INFINITY), max_teacher_ = all(-INFINITY), lowest_ = all(INFINITY), high_ = all(-INFINITY),
         low_ = all(INFINITY);
  };
};

template <>
__device__ __forceinline__ __nv_bfloat162 PackedVector<__nv_bfloat162>::Scan::all(float value) {
  return __float2bfloat162_rn(value);
}

template <>
__device__ __forceinline__ __half2 PackedVector<__half2>::Scan::all(float value) {
  return __float2half2_rn(value);
}

template <>
struct LogitVector<__nv_bfloat16> : PackedVector<__nv_bfloat162> {};
template <>
struct LogitVector<__half> : PackedVector<__half2> {};

}  // namespace trb::cuda
