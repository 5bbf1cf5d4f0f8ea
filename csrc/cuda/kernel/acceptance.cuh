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

// One thread: decides where the token of a solved row comes from. Not inlined, because the float and the
// double-precision path would each need the registers of two exponentials.
template <int kWarps>
__device__ __noinline__ TokenFrom token_from(const KernelArgs& args, const BlockState<kWarps>& state) {
  const Answer& answer = state.answer;
  if (answer.status == Status::kFault) return TokenFrom::kFault;
  if (!args.draws()) return TokenFrom::kNowhere;
  const bool drafted = state.draft.token >= 0;
  if (drafted) {
    const LogProbs of = log_probs_of(answer, state.draft);
    if (is_accepted(state.accept_uniform, of.behavior, of.student)) return TokenFrom::kDraft;
  }
  if (!is_uniform(state.uniform)) return TokenFrom::kFault;
  // If mu is the student, max(mu - pi_S, 0) is empty.
  return drafted && answer.status != Status::kStudent ? TokenFrom::kResidual : TokenFrom::kMu;
}

}  // namespace trb::cuda
