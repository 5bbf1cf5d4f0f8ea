// Defines trb::verify_top_k as torch calls it, alike for every device. A device provides
// void run_verify(const VerifyTopKCall&)  and registers VerifyTopKOperator<run_verify>.
#pragma once

#include "top_k_tensors.h"
#include "verify_call.h"

namespace trb {

struct VerifyTopKCall {
  const char* op;
  const Tensor& student;            // [R_S, V_S]
  const Tensor& ids;                // [R_T, k]
  const Tensor& teacher_log_probs;  // [R_T, k]
  VerifyArrays arrays;
};

template <void (*run_verify)(const VerifyTopKCall&)>
struct VerifyTopKOperator {
  static VerifyOutputs verify(const Tensor& student, const Tensor& ids, const Tensor& teacher_log_probs,
                              const Tensor& draft_tokens, const Tensor& offsets, const Tensor& epsilon,
                              const Tensor& temperature, const Tensor& accept_uniform, const Tensor& draw_uniform,
                              const std::optional<Tensor>& student_rows, const std::optional<Tensor>& teacher_rows,
                              int64_t width, int64_t vocab, int64_t student_kind, bool log_probs) {
    const VerifyInputs inputs{student,      draft_tokens, offsets,      epsilon, temperature, accept_uniform,
                              draw_uniform, student_rows, teacher_rows, width,   student_kind};
    VerifyTopKCall call = checked(inputs, ids, teacher_log_probs, vocab);
    VerifyOutputs outputs = new_outputs(student, call.arrays, log_probs);
    set_outputs(call.arrays, outputs, log_probs);
    run_verify(call);
    return outputs;
  }

  static VerifyOutputs verify_out(const Tensor& student, const Tensor& ids, const Tensor& teacher_log_probs,
                                  const Tensor& draft_tokens, const Tensor& offsets, const Tensor& epsilon,
                                  const Tensor& temperature, const Tensor& accept_uniform, const Tensor& draw_uniform,
                                  const std::optional<Tensor>& student_rows, const std::optional<Tensor>& teacher_rows,
                                  int64_t width, int64_t vocab, int64_t student_kind, bool log_probs,
                                  const Tensor& tokens, const Tensor& emitted, const Tensor& accepted,
                                  const Tensor& beta, const Tensor& kl, const Tensor& out_log_probs) {
    const VerifyInputs inputs{student,      draft_tokens, offsets,      epsilon, temperature, accept_uniform,
                              draw_uniform, student_rows, teacher_rows, width,   student_kind};
    VerifyTopKCall call = checked(inputs, ids, teacher_log_probs, vocab);
    const VerifyOutputs outputs{tokens, emitted, accepted, beta, kl, out_log_probs};
    check_outputs(call.op, inputs, {{"teacher_ids", &ids}, {"teacher_log_probs", &teacher_log_probs}}, call.arrays,
                  outputs, log_probs);
    set_outputs(call.arrays, outputs, log_probs);
    run_verify(call);
    return outputs;
  }

 private:
  static VerifyTopKCall checked(const VerifyInputs& inputs, const Tensor& ids, const Tensor& log_probs, int64_t vocab) {
    const char* op = "trb::verify_top_k";
    check_logits(op, "student_logits", inputs.student);
    check_vocabulary(op, inputs.student);
    check_top_k(op, ids, log_probs, inputs.student);
    const int64_t columns = inputs.student.size(1);
    check(vocab >= 0 && vocab <= columns, op, ": vocab must be between 0 (the student's width) and ", columns, ", got ",
          vocab);
    return {op, inputs.student, ids, log_probs,
            checked_arrays(op, inputs, vocab == 0 ? columns : vocab, "teacher_ids", ids)};
  }
};

// Registers the operator. Used in a TRB_LIBRARY_IMPL block of the device.
#define TRB_REGISTER_VERIFY_TOP_K(m, run_verify)                                   \
  m.impl("verify_top_k", TORCH_BOX(&trb::VerifyTopKOperator<run_verify>::verify)); \
  m.impl("verify_top_k.out", TORCH_BOX(&trb::VerifyTopKOperator<run_verify>::verify_out))

}  // namespace trb
