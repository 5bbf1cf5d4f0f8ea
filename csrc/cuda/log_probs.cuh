// log mu over a warp's chunks: (1 - beta) x + beta y - log_norm, no exponential. The logits are taken relative to the
// row's maxima first, so that a large common offset costs no digits. 16-byte streaming stores where the row of the
// output is aligned.
#pragma once

#include "block_state.cuh"
#include "kernel_args.h"
#include "row_source.cuh"

namespace trb::cuda {

template <typename T>
__device__ __forceinline__ void store_chunk(float* row, int32_t vocab, int32_t chunk, int lane,
                                            const float (&values)[LogitVector<T>::kTokens]) {
  constexpr int kTokens = LogitVector<T>::kTokens;
  const int32_t first = (chunk * kWarp + lane) * kTokens;
  float* const out = row + first;
  if (first + kTokens <= vocab && reinterpret_cast<uintptr_t>(row) % kVectorBytes == 0) {
#pragma unroll
    for (int i = 0; i < kTokens; i += 4) {
      __stcs(reinterpret_cast<float4*>(out + i), make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]));
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    if (first + i < vocab) out[i] = values[i];
  }
}

template <typename T, typename Source>
__device__ __forceinline__ void write_log_probs(const Source& source, Chunks chunks, int lane, int32_t vocab,
                                                const Answer& answer, float* row) {
  constexpr int kTokens = LogitVector<T>::kTokens;
  const double beta = answer.beta;
  const bool student_alone = beta == 0.0, teacher_alone = beta == 1.0;
  const float for_student = static_cast<float>((1.0 - beta) * answer.inverse_temperature);
  const float for_teacher = static_cast<float>(beta * answer.inverse_temperature);
  const double at_maxima = (1.0 - beta) * (answer.max_student * answer.inverse_temperature - answer.reference_student) +
                           beta * (answer.max_teacher * answer.inverse_temperature - answer.reference_teacher);
  const float constant = static_cast<float>(at_maxima - answer.log_norm);
#pragma unroll 1
  for (int32_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
    uint4 student, teacher;
    source.template vectors<true>(chunk, lane, &student, &teacher);
    float a[kTokens], b[kTokens], out[kTokens];
    LogitVector<T>::unpack(student, a);
    LogitVector<T>::unpack(teacher, b);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const float x = a[i] - answer.max_student, y = b[i] - answer.max_teacher;
      const bool supported = a[i] > -INFINITY && (student_alone || b[i] > -INFINITY);
      // At the ends the other model's -inf must not meet a factor of 0.
      const float by_student = fmaf(x, for_student, constant);
      const float t = student_alone   ? by_student
                      : teacher_alone ? fmaf(y, for_teacher, constant)
                                      : fmaf(y, for_teacher, by_student);
      out[i] = supported ? t : -INFINITY;
    }
    store_chunk<T>(row, vocab, chunk, lane, out);
  }
}

template <typename T>
__device__ __forceinline__ void write_nan_log_probs(Chunks chunks, int lane, int32_t vocab, float* row) {
  float out[LogitVector<T>::kTokens];
#pragma unroll
  for (int i = 0; i < LogitVector<T>::kTokens; ++i) out[i] = NAN;
  for (int32_t chunk = chunks.begin; chunk < chunks.end; ++chunk) store_chunk<T>(row, vocab, chunk, lane, out);
}

}  // namespace trb::cuda
