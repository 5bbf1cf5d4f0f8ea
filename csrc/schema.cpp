// Declares every schema of torch.ops.trb. Each device registers its kernels in row_operators.cpp, verify_operator.cpp
// and top_k_operators.cpp (cpu/, cuda/launch/), trbext/_library.py registers fake kernels and the absence of autograd,
// and trbext/ops.py documents the operators.
//
// per_row is declared before the overload of a float, because torch takes the first overload that fits. A tensor of one
// element fits a float too, and the host would then have to read it from the device: a wait, and an error in a CUDA
// graph.
//
//   uniform  float64 [N] in [0, 1). The caller draws it, so that the operators are pure functions of their arguments.
//   epsilon  nats: a float for all rows, or float32 [N].
//   verify   B requests share N rows, a different number each, and may name their rows of either model's logits.
//   top_k    The teacher is k tokens per row: ids int32 or int64 and log-probabilities float32, both [N, k].
#include "torch_compat.h"

TRB_LIBRARY(m) {
  m.def(
      "blend.per_row(Tensor student_logits, Tensor teacher_logits, Tensor epsilon, *, float temperature=1.0)"
      " -> (Tensor log_probs, Tensor beta, Tensor kl)");
  m.def(
      "blend(Tensor student_logits, Tensor teacher_logits, float epsilon, *, float temperature=1.0)"
      " -> (Tensor log_probs, Tensor beta, Tensor kl)");
  m.def(
      "solve.per_row(Tensor student_logits, Tensor teacher_logits, Tensor epsilon, *, float temperature=1.0)"
      " -> (Tensor beta, Tensor kl, Tensor sweeps)");
  m.def(
      "solve(Tensor student_logits, Tensor teacher_logits, float epsilon, *, float temperature=1.0)"
      " -> (Tensor beta, Tensor kl, Tensor sweeps)");
  m.def(
      "sample.per_row(Tensor student_logits, Tensor teacher_logits, Tensor epsilon, Tensor uniform, *,"
      " float temperature=1.0)"
      " -> (Tensor token, Tensor log_prob, Tensor student_log_prob, Tensor teacher_log_prob, Tensor beta, Tensor kl)");
  m.def(
      "sample(Tensor student_logits, Tensor teacher_logits, float epsilon, Tensor uniform, *, float temperature=1.0)"
      " -> (Tensor token, Tensor log_prob, Tensor student_log_prob, Tensor teacher_log_prob, Tensor beta, Tensor kl)");
  m.def(
      "verify(Tensor student_logits, Tensor teacher_logits, Tensor draft_tokens, Tensor offsets, Tensor epsilon,"
      " Tensor temperature, Tensor accept_uniform, Tensor draw_uniform, *, Tensor? student_rows=None,"
      " Tensor? teacher_rows=None, SymInt width, SymInt vocab=0, int student_kind=0, bool log_probs=False)"
      " -> (Tensor tokens, Tensor emitted, Tensor accepted, Tensor beta, Tensor kl, Tensor log_probs)");
  m.def(
      "verify.out(Tensor student_logits, Tensor teacher_logits, Tensor draft_tokens, Tensor offsets, Tensor epsilon,"
      " Tensor temperature, Tensor accept_uniform, Tensor draw_uniform, *, Tensor? student_rows=None,"
      " Tensor? teacher_rows=None, SymInt width, SymInt vocab=0, int student_kind=0, bool log_probs=False,"
      " Tensor(a!) tokens, Tensor(b!) emitted, Tensor(c!) accepted, Tensor(d!) beta, Tensor(e!) kl,"
      " Tensor(f!) out_log_probs)"
      " -> (Tensor(a!), Tensor(b!), Tensor(c!), Tensor(d!), Tensor(e!), Tensor(f!))");
  m.def(
      "blend_top_k.per_row(Tensor student_logits, Tensor teacher_ids, Tensor teacher_log_probs, Tensor epsilon, *,"
      " float temperature=1.0)"
      " -> (Tensor log_probs, Tensor beta, Tensor kl)");
  m.def(
      "blend_top_k(Tensor student_logits, Tensor teacher_ids, Tensor teacher_log_probs, float epsilon, *,"
      " float temperature=1.0)"
      " -> (Tensor log_probs, Tensor beta, Tensor kl)");
  m.def(
      "solve_top_k.per_row(Tensor student_logits, Tensor teacher_ids, Tensor teacher_log_probs, Tensor epsilon, *,"
      " float temperature=1.0)"
      " -> (Tensor beta, Tensor kl, Tensor sweeps)");
  m.def(
      "solve_top_k(Tensor student_logits, Tensor teacher_ids, Tensor teacher_log_probs, float epsilon, *,"
      " float temperature=1.0)"
      " -> (Tensor beta, Tensor kl, Tensor sweeps)");
  m.def(
      "sample_top_k.per_row(Tensor student_logits, Tensor teacher_ids, Tensor teacher_log_probs, Tensor epsilon,"
      " Tensor uniform, *, float temperature=1.0)"
      " -> (Tensor token, Tensor log_prob, Tensor student_log_prob, Tensor teacher_log_prob, Tensor beta, Tensor kl)");
  m.def(
      "sample_top_k(Tensor student_logits, Tensor teacher_ids, Tensor teacher_log_probs, float epsilon,"
      " Tensor uniform, *, float temperature=1.0)"
      " -> (Tensor token, Tensor log_prob, Tensor student_log_prob, Tensor teacher_log_prob, Tensor beta, Tensor kl)");
  m.def(
      "verify_top_k(Tensor student_logits, Tensor teacher_ids, Tensor teacher_log_probs, Tensor draft_tokens,"
      " Tensor offsets, Tensor epsilon, Tensor temperature, Tensor accept_uniform, Tensor draw_uniform, *,"
      " Tensor? student_rows=None, Tensor? teacher_rows=None, SymInt width, SymInt vocab=0, int student_kind=0,"
      " bool log_probs=False)"
      " -> (Tensor tokens, Tensor emitted, Tensor accepted, Tensor beta, Tensor kl, Tensor log_probs)");
  m.def(
      "verify_top_k.out(Tensor student_logits, Tensor teacher_ids, Tensor teacher_log_probs, Tensor draft_tokens,"
      " Tensor offsets, Tensor epsilon, Tensor temperature, Tensor accept_uniform, Tensor draw_uniform, *,"
      " Tensor? student_rows=None, Tensor? teacher_rows=None, SymInt width, SymInt vocab=0, int student_kind=0,"
      " bool log_probs=False, Tensor(a!) tokens, Tensor(b!) emitted, Tensor(c!) accepted, Tensor(d!) beta,"
      " Tensor(e!) kl, Tensor(f!) out_log_probs)"
      " -> (Tensor(a!), Tensor(b!), Tensor(c!), Tensor(d!), Tensor(e!), Tensor(f!))");
}
