// Reads one row of both models from device memory: any strides, any alignment, dtypes that may differ.
#pragma once

#include <cfloat>
#include <type_traits>

#include "../kernel_args.h"
#include "logit_vector.cuh"
#include "warp.cuh"

namespace trb::cuda {

template <typename T>
constexpr int kChunkTokens = kWarp * LogitVector<T>::kTokens;

template <typename T>
constexpr DType kDTypeOf = std::is_same_v<T, float>    ? DType::kFloat32
                           : std::is_same_v<T, __half> ? DType::kFloat16
                                                       : DType::kBFloat16;

template <typename T>
__device__ __forceinline__ uint4 minus_infinities() {
  const uint32_t word = std::is_same_v<T, float> ? 0xff800000u : std::is_same_v<T, __half> ? 0xfc00fc00u : 0xff80ff80u;
  return make_uint4(word, word, word, word);
}

// One row of one model in device memory.
struct LogitsRow {
  const char* data;
  int64_t stride;
  DType dtype;

  __device__ __forceinline__ LogitsRow(const Logits& logits, int64_t row)
      : data(static_cast<const char*>(logits.data) +
             (row * logits.row_stride << (logits.dtype == DType::kFloat32 ? 2 : 1))),
        stride(logits.stride),
        dtype(logits.dtype) {}

  // Whether the logits are contiguous and of type T.
  template <typename T>
  __device__ __forceinline__ bool contiguous_of() const {
    return stride == 1 && dtype == kDTypeOf<T> && reinterpret_cast<uintptr_t>(data) % sizeof(T) == 0;
  }
  __device__ __forceinline__ int bytes_past_alignment() const {
    return static_cast<int>(reinterpret_cast<uintptr_t>(data) % kVectorBytes);
  }

  __device__ __forceinline__ float logit(int64_t token) const {
    if (dtype == DType::kFloat32) return reinterpret_cast<const float*>(data)[token * stride];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[token * stride];
    return dtype == DType::kFloat16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(uint32_t{bits} << 16);
  }
};

// The bits of `value` as a T. Exact, because `value` was converted from a T, or from any of the types if T is float.
template <typename T>
__device__ __forceinline__ uint32_t bits_of(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return __float_as_uint(value);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __half_as_ushort(__float2half_rn(value));
  } else {
    return __float_as_uint(value) >> 16;
  }
}

// Sets token i of a 16-byte vector to `bits`.
template <typename T>
__device__ __forceinline__ void set_token(int i, uint32_t bits, uint32_t* words) {
  constexpr int kPerWord = 4 / sizeof(T);
  const int shift = 16 * (i % kPerWord);
  words[i / kPerWord] = kPerWord == 1 ? bits : (words[i / kPerWord] & ~(0xffffu << shift)) | (bits << shift);
}

template <typename T>
struct RowPair {
  LogitsRow student, teacher;
  int32_t vocab;
  bool contiguous;  // both rows, and of type T
  bool aligned;     // contiguous, and both rows begin at multiples of 16 bytes
  StudentKind kind;
  float temperature;  // for a student that is given in another form than raw logits

  __device__ __forceinline__ RowPair(const KernelArgs& args, int64_t row) : RowPair(args, row, row, 1.0f) {}
  __device__ __forceinline__ RowPair(const KernelArgs& args, int64_t student_row, int64_t teacher_row,
                                     float temperature)
      : student(args.student, student_row),
        teacher(args.teacher, teacher_row),
        vocab(args.vocab),
        contiguous(student.contiguous_of<T>() && teacher.contiguous_of<T>()),
        aligned(contiguous && student.bytes_past_alignment() == 0 && teacher.bytes_past_alignment() == 0),
        kind(std::is_same_v<T, float> ? args.verify.student_kind : StudentKind::kLogits),
        temperature(temperature) {}

  // Whether the student's values must be converted to raw logits when they are read. `vectors` and `convert` do that,
  // `whole_vectors` does not. Only the kernel of float32 rows gets such a student.
  __device__ __forceinline__ bool converted() const { return std::is_same_v<T, float> && kind != StudentKind::kLogits; }
  __device__ __forceinline__ uint4 convert(uint4 student) const {
    if (!converted()) return student;
    return raw_logits(student, kind, temperature);
  }
  __device__ __forceinline__ float student_logit(int64_t token) const {
    const float value = student.logit(token);
    if (!converted()) return value;
    return __uint_as_float(raw_logits(make_uint4(__float_as_uint(value), 0, 0, 0), kind, temperature).x);
  }

  // Loads a vector that lies within an aligned row. If `kOnce`, it is not read again, and the caches may evict it
  // first.
  template <bool kOnce>
  __device__ __forceinline__ void whole_vectors(int32_t vector, uint4* a, uint4* b) const {
    const uint4 *from_student = reinterpret_cast<const uint4*>(student.data) + vector,
                *from_teacher = reinterpret_cast<const uint4*>(teacher.data) + vector;
    *a = kOnce ? __ldcs(from_student) : *from_student;
    *b = kOnce ? __ldcs(from_teacher) : *from_teacher;
  }

  template <bool kOnce>
  __device__ __forceinline__ void vectors(int32_t vector, uint4* a, uint4* b) const {
    const int32_t first = vector * kTokens;
    if (aligned && first + kTokens <= vocab) {
      whole_vectors<kOnce>(vector, a, b);
    } else {
      // The padding beyond the end becomes -inf when it is converted.
      const bool probabilities = converted() && kind == StudentKind::kProbabilities;
      *a = elements(student, first, probabilities ? make_uint4(0, 0, 0, 0) : minus_infinities<T>());
      *b = elements(teacher, first, minus_infinities<T>());
    }
    *a = convert(*a);
  }

  // Adds a vector that `vectors` has read to the extremes, without its padding.
  __device__ __forceinline__ void scan(int32_t vector, uint4 a, uint4 b,
                                       typename LogitVector<T>::Scan* extremes) const {
    const int32_t count = vocab - vector * kTokens;
    if (count >= kTokens) {
      extremes->add(a, b);
    } else if (count > 0) {
      extremes->add(without_padding(a, count), without_padding(b, count));
    }
  }

 private:
  static constexpr int kTokens = LogitVector<T>::kTokens, kPerWord = kTokens / 4;

  // Converts four float32 values of the student to raw logits. Not inlined, because logarithms at every place that
  // reads a row would make the kernel longer by half.
  static __device__ __noinline__ uint4 raw_logits(uint4 values, StudentKind kind, float temperature) {
    uint32_t* words = reinterpret_cast<uint32_t*>(&values);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float value = __uint_as_float(words[i]);
      const float x = kind == StudentKind::kProbabilities ? logf(value) : value, raw = x * temperature;
      // A finite number must not overflow, because -inf would be a mask and +inf a fault.
      words[i] = __float_as_uint(fabsf(x) < INFINITY && fabsf(raw) == INFINITY ? copysignf(FLT_MAX, raw) : raw);
    }
    return values;
  }

  __device__ __forceinline__ uint4 elements(const LogitsRow& row, int32_t first, uint4 vector) const {
    uint32_t* words = reinterpret_cast<uint32_t*>(&vector);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (first + i < vocab) set_token<T>(i, bits_of<T>(row.logit(first + i)), words);
    }
    return vector;
  }

  // Replaces the tokens from `count` on by the first token, so that padding does not change the extremes.
  static __device__ __forceinline__ uint4 without_padding(uint4 vector, int count) {
    uint32_t* words = reinterpret_cast<uint32_t*>(&vector);
#pragma unroll
    for (int i = 1; i < kTokens; ++i) {
      if (i >= count) set_token<T>(i, kPerWord == 1 ? words[0] : words[0] & 0xffffu, words);
    }
    return vector;
  }
};

}  // namespace trb::cuda
