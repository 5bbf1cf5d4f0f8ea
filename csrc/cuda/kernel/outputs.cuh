// Writes every output of a row: beta and the KL divergence, the token, the verdict of verify, and log mu.
#pragma once

#include "acceptance.cuh"
#include "row_source.cuh"

namespace trb::cuda {

// One thread: writes beta, the divergence and the number of sweeps.
__device__ __forceinline__ void write_answer(const KernelArgs& args, int64_t row, const Answer& answer) {
  args.beta[row] = answer.beta;
  args.kl[row] = static_cast<float>(answer.kl);
  if (args.sweeps != nullptr) args.sweeps[row] = answer.sweeps;
}

// One thread: writes the outputs of a row at fault, except log mu.
__device__ __forceinline__ void write_fault(const KernelArgs& args, int64_t row, int32_t sweeps) {
  args.beta[row] = args.kl[row] = NAN;
  if (args.sweeps != nullptr) args.sweeps[row] = sweeps;
  if (args.verifies()) args.verdicts[row] = RowVerdict{};
  if (args.token == nullptr) return;
  args.token[row] = -1;
  args.log_prob[row] = args.student_log_prob[row] = args.teacher_log_prob[row] = NAN;
}

// One thread: writes the row's token, as all outputs of `sample` or as a verdict of `verify`.
__device__ __forceinline__ void write_token(const KernelArgs& args, int64_t row, const Answer& answer,
                                            const Token& token, const LogProbs& of, Verdict verdict) {
  if (token.token < 0) {
    write_fault(args, row, answer.sweeps);
    return;
  }
  write_answer(args, row, answer);
  const float student = static_cast<float>(of.student), teacher = static_cast<float>(of.teacher),
              behavior = static_cast<float>(of.behavior);
  if (args.verifies()) {
    args.verdicts[row] = {token.token, verdict, student, teacher, behavior, answer.beta, static_cast<float>(answer.kl)};
    return;
  }
  args.token[row] = token.token;
  args.log_prob[row] = behavior;
  args.student_log_prob[row] = student;
  args.teacher_log_prob[row] = teacher;
}

// One thread of the row: writes all outputs but log mu if no token is drawn, and nothing if one is.
template <int kWarps>
__device__ __forceinline__ void write_without_a_draw(const KernelArgs& args, int64_t row,
                                                     const BlockState<kWarps>& state) {
  const TokenFrom from = state.token_from;
  if (from == TokenFrom::kFault) {
    write_fault(args, row, state.answer.sweeps);
  } else if (from == TokenFrom::kNowhere) {
    write_answer(args, row, state.answer);
  } else if (from == TokenFrom::kDraft) {
    write_token(args, row, state.answer, state.draft, log_probs_of(state.answer, state.draft), Verdict::kAccepted);
  }
}

// Stores a lane's values of one chunk, by 16-byte streaming stores if the output row is aligned.
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

// Writes log mu = (1 - beta) x + beta y - log_norm over a warp's chunks, without an exponential. The logits are taken
// relative to the row's maxima first, so that a large common offset costs no digits.
template <typename T, typename Source>
__device__ __forceinline__ void write_log_probs(const Source& source, Chunks chunks, int lane, int32_t vocab,
                                                const Answer& answer, float* row) {
  constexpr int kTokens = LogitVector<T>::kTokens;
  const double beta = answer.beta;
  const bool student_only = beta == 0.0, teacher_only = beta == 1.0;
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
      const bool supported = a[i] > -INFINITY && (student_only || b[i] > -INFINITY);
      // At the ends the other model's logit may be -inf, and 0 * -inf is NaN.
      const float by_student = fmaf(x, for_student, constant);
      const float t = student_only   ? by_student
                      : teacher_only ? fmaf(y, for_teacher, constant)
                                     : fmaf(y, for_teacher, by_student);
      out[i] = supported ? t : -INFINITY;
    }
    store_chunk<T>(row, vocab, chunk, lane, out);
  }
}

// Writes NaN over a warp's chunks, for a row at fault.
template <typename T>
__device__ __forceinline__ void write_nan_log_probs(Chunks chunks, int lane, int32_t vocab, float* row) {
  float out[LogitVector<T>::kTokens];
#pragma unroll
  for (int i = 0; i < LogitVector<T>::kTokens; ++i) out[i] = NAN;
  for (int32_t chunk = chunks.begin; chunk < chunks.end; ++chunk) store_chunk<T>(row, vocab, chunk, lane, out);
}

}  // namespace trb::cuda
