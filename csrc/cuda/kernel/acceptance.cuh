// Decides whether the draft of a solved row is accepted, from the draft's two logits and without a sweep.
#pragma once

#include "block_state.cuh"

namespace trb::cuda {

struct LogProbs {
  double student, teacher, behavior;
};

// The log-probabilities of one token.
__device__ __forceinline__ LogProbs log_probs_of(const Answer& answer, const Token& token) {
  const double x = token.student_logit * answer.inverse_temperature - answer.reference_student,
               y = token.teacher_logit * answer.inverse_temperature - answer.reference_teacher, beta = answer.beta;
  const double log_weight = beta == 0.0 ? x : beta == 1.0 ? y : (1.0 - beta) * x + beta * y;
  const bool supported = token.student_logit > -INFINITY && (beta == 0.0 || token.teacher_logit > -INFINITY);
  return {x - answer.log_student, y - answer.log_teacher, supported ? log_weight - answer.log_norm : -INFINITY};
}

// A logit from an origin. It is subtracted before it is scaled: a product of 1e30 has lost the digits of the
// difference.
__device__ __forceinline__ double in_frame(float logit, float origin, const Answer& answer) {
  return (static_cast<double>(logit) - origin) * answer.inverse_temperature;
}

// log mu of a token of a row in double precision, -inf outside its support. At the ends no factor of 0 meets an -inf.
__device__ __forceinline__ double log_mu_in_double(const Answer& answer, float a, float b) {
  const double beta = answer.beta;
  if (!(a > -INFINITY) || (beta > 0.0 && !(b > -INFINITY))) return -INFINITY;
  const double x = in_frame(a, answer.max_student, answer), y = in_frame(b, answer.max_teacher, answer);
  return (beta == 0.0 ? x : tilted_logit(x, y, beta)) - answer.log_norm;
}

// The log-probabilities of one token of a row in double precision. The models' own are taken from the maxima of the
// row: the origin of the answer may lie so far from the one or the other that none of their digits is left.
template <int kWarps>
__device__ __forceinline__ LogProbs double_log_probs_of(const BlockState<kWarps>& state, const Token& token) {
  const float a = token.student_logit, b = token.teacher_logit;
  return {in_frame(a, state.row.max_student, state.answer) - state.log_sums[0],
          in_frame(b, state.row.max_teacher, state.answer) - state.log_sums[1], log_mu_in_double(state.answer, a, b)};
}

// One thread: decides where the token of a solved row comes from. Not inlined, to save the kernel's registers.
template <bool kInDouble, int kWarps>
__device__ __noinline__ TokenFrom token_from(const KernelArgs& args, const BlockState<kWarps>& state) {
  const Answer& answer = state.answer;
  if (answer.status == Status::kFault) return TokenFrom::kFault;
  if (!args.draws()) return TokenFrom::kNowhere;
  const bool drafted = state.draft.token >= 0;
  if (drafted) {
    const LogProbs of = kInDouble ? double_log_probs_of(state, state.draft) : log_probs_of(answer, state.draft);
    if (is_accepted(state.accept_uniform, of.behavior, of.student)) return TokenFrom::kDraft;
  }
  if (!is_uniform(state.uniform)) return TokenFrom::kFault;
  // If mu is the student, max(mu - pi_S, 0) is empty.
  return drafted && answer.status != Status::kStudent ? TokenFrom::kResidual : TokenFrom::kMu;
}

}  // namespace trb::cuda
