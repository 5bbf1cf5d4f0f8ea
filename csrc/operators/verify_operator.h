// Defines trb::verify as torch calls it, alike for every device: it checks the arguments, allocates the outputs, and
// hands one VerifyCall to the device. A device provides  void run_verify(const VerifyCall&)  and registers
// VerifyOperator<run_verify>.
#pragma once

#include "verify_call.h"

namespace trb {

struct VerifyCall {
  const char* op;
  const Tensor& student;  // [R_S, V_S]; neither model's logits are written
  const Tensor& teacher;  // [R_T, V_T]
  VerifyArrays arrays;    // there may be no request, no row, and rows that belong to no request
};

template <void (*run_verify)(const VerifyCall&)>
struct VerifyOperator {
  static VerifyOutputs verify(const Tensor& student, const Tensor& teacher, const Tensor& draft_tokens,
                              const Tensor& offsets, const Tensor& epsilon, const Tensor& temperature,
                              const Tensor& accept_uniform, const Tensor& draw_uniform,
                              const std::optional<Tensor>& student_rows, const std::optional<Tensor>& teacher_rows,
                              int64_t width, int64_t vocab, int64_t student_kind, bool log_probs) {
    const VerifyInputs inputs{student,      draft_tokens, offsets,      epsilon, temperature, accept_uniform,
                              draw_uniform, student_rows, teacher_rows, width,   student_kind};
    VerifyCall call = checked(inputs, teacher, vocab);
    VerifyOutputs outputs = new_outputs(student, call.arrays, log_probs);
    set_outputs(call.arrays, outputs, log_probs);
    run_verify(call);
    return outputs;
  }

  static VerifyOutputs verify_out(const Tensor& student, const Tensor& teacher, const Tensor& draft_tokens,
                                  const Tensor& offsets, const Tensor& epsilon, const Tensor& temperature,
                                  const Tensor& accept_uniform, const Tensor& draw_uniform,
                                  const std::optional<Tensor>& student_rows, const std::optional<Tensor>& teacher_rows,
                                  int64_t width, int64_t vocab, int64_t student_kind, bool log_probs,
                                  const Tensor& tokens, const Tensor& emitted, const Tensor& accepted,
                                  const Tensor& beta, const Tensor& kl, const Tensor& out_log_probs) {
    const VerifyInputs inputs{student,      draft_tokens, offsets,      epsilon, temperature, accept_uniform,
                              draw_uniform, student_rows, teacher_rows, width,   student_kind};
    VerifyCall call = checked(inputs, teacher, vocab);
    const VerifyOutputs outputs{tokens, emitted, accepted, beta, kl, out_log_probs};
    check_outputs(call.op, inputs, {{"teacher_logits", &teacher}}, call.arrays, outputs, log_probs);
    set_outputs(call.arrays, outputs, log_probs);
    run_verify(call);
    return outputs;
  }

 private:
  static VerifyCall checked(const VerifyInputs& inputs, const Tensor& teacher, int64_t vocab) {
    const char* op = "trb::verify";
    const int64_t columns = check_verify_logits(op, inputs.student, teacher, vocab);
    return {op, inputs.student, teacher, checked_arrays(op, inputs, columns, "teacher_logits", teacher)};
  }
};

// Registers the operator. Used in a TRB_LIBRARY_IMPL block of the device.
#define TRB_REGISTER_VERIFY(m, run_verify)                               \
  m.impl("verify", TORCH_BOX(&trb::VerifyOperator<run_verify>::verify)); \
  m.impl("verify.out", TORCH_BOX(&trb::VerifyOperator<run_verify>::verify_out))

}  // namespace trb
