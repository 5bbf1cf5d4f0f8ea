// Defines trb::verify as torch calls it, alike for every device: it checks the arguments, allocates the outputs, and
// hands one VerifyCall to the device. A device provides  void run_verify(const VerifyCall&)  and registers
// VerifyOperator<run_verify>.
#pragma once

#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "checks.h"
#include "verify_requests.h"

namespace trb {

struct VerifyCall {
  const char* op;
  const Tensor& student;  // [R_S, V_S]; neither model's logits are written
  const Tensor& teacher;  // [R_T, V_T]
  VerifyArrays arrays;    // there may be no request, no row, and rows that belong to no request
};

template <void (*run_verify)(const VerifyCall&)>
struct VerifyOperator {
  using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static Six verify(const Tensor& student, const Tensor& teacher, const Tensor& draft_tokens, const Tensor& offsets,
                    const Tensor& epsilon, const Tensor& temperature, const Tensor& accept_uniform,
                    const Tensor& draw_uniform, const std::optional<Tensor>& student_rows,
                    const std::optional<Tensor>& teacher_rows, int64_t width, int64_t vocab, int64_t student_kind,
                    bool log_probs) {
    VerifyCall call = checked(student, teacher, draft_tokens, offsets, epsilon, temperature, accept_uniform,
                              draw_uniform, student_rows, teacher_rows, width, vocab, student_kind);
    const int64_t rows = call.arrays.rows, requests = call.arrays.requests;
    const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
      return new_empty(student, shape, dtype);
    };
    Six outputs{empty({requests, width}, ScalarType::Long),
                empty({requests}, ScalarType::Int),
                empty({requests}, ScalarType::Int),
                empty({rows}, ScalarType::Float),
                empty({rows}, ScalarType::Float),
                log_probs ? empty({requests, width, 3}, ScalarType::Float) : empty({0, 0, 3}, ScalarType::Float)};
    run(call, outputs, log_probs);
    return outputs;
  }

  static Six verify_out(const Tensor& student, const Tensor& teacher, const Tensor& draft_tokens, const Tensor& offsets,
                        const Tensor& epsilon, const Tensor& temperature, const Tensor& accept_uniform,
                        const Tensor& draw_uniform, const std::optional<Tensor>& student_rows,
                        const std::optional<Tensor>& teacher_rows, int64_t width, int64_t vocab, int64_t student_kind,
                        bool log_probs, const Tensor& tokens, const Tensor& emitted, const Tensor& accepted,
                        const Tensor& beta, const Tensor& kl, const Tensor& out_log_probs) {
    VerifyCall call = checked(student, teacher, draft_tokens, offsets, epsilon, temperature, accept_uniform,
                              draw_uniform, student_rows, teacher_rows, width, vocab, student_kind);
    const int64_t rows = call.arrays.rows, requests = call.arrays.requests;
    // 1. The caller's outputs have the shapes and dtypes that `verify` would have allocated.
    check_out(call.op, "tokens", tokens, {requests, width}, {ScalarType::Int, ScalarType::Long}, student);
    check_out(call.op, "emitted", emitted, {requests}, {ScalarType::Int}, student);
    check_out(call.op, "accepted", accepted, {requests}, {ScalarType::Int}, student);
    check_out(call.op, "beta", beta, {rows}, {ScalarType::Float}, student);
    check_out(call.op, "kl", kl, {rows}, {ScalarType::Float}, student);
    if (log_probs) {
      check_out(call.op, "log_probs", out_log_probs, {requests, width, 3}, {ScalarType::Float}, student);
    } else {
      check(out_log_probs.numel() == 0, call.op, ": log_probs must have no element if log_probs=False, got shape ",
            shape_of(out_log_probs));
    }
    // 2. No output shares memory with another output or with an input, which the device reads while it writes.
    using Named = std::pair<const char*, const Tensor*>;
    const Named written[] = {{"tokens", &tokens}, {"emitted", &emitted}, {"accepted", &accepted},
                             {"beta", &beta},     {"kl", &kl},           {"log_probs", &out_log_probs}};
    const Named read[] = {{"student_logits", &student},
                          {"teacher_logits", &teacher},
                          {"draft_tokens", &draft_tokens},
                          {"offsets", &offsets},
                          {"epsilon", &epsilon},
                          {"temperature", &temperature},
                          {"accept_uniform", &accept_uniform},
                          {"draw_uniform", &draw_uniform},
                          {"student_rows", student_rows.has_value() ? &*student_rows : nullptr},
                          {"teacher_rows", teacher_rows.has_value() ? &*teacher_rows : nullptr}};
    for (const Named& output : written) {
      for (const Named& other : written) {
        if (&other < &output) check_apart(call.op, output.first, *output.second, other.first, *other.second);
      }
      for (const Named& input : read) {
        if (input.second != nullptr) check_apart(call.op, output.first, *output.second, input.first, *input.second);
      }
    }
    // 3. The device fills them.
    Six outputs{tokens, emitted, accepted, beta, kl, out_log_probs};
    run(call, outputs, log_probs);
    return outputs;
  }

 private:
  static Indices indices_of(const Tensor& tensor) {
    return {tensor.const_data_ptr(), tensor.stride(0), tensor.scalar_type() == ScalarType::Long};
  }
  static Indices indices_of(const std::optional<Tensor>& tensor) {
    return tensor.has_value() ? indices_of(*tensor) : Indices{nullptr, 0, false};
  }
  template <typename T>
  static Column<T> column_of(const Tensor& tensor) {
    return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0)};
  }

  static VerifyCall checked(const Tensor& student, const Tensor& teacher, const Tensor& draft_tokens,
                            const Tensor& offsets, const Tensor& epsilon, const Tensor& temperature,
                            const Tensor& accept_uniform, const Tensor& draw_uniform,
                            const std::optional<Tensor>& student_rows, const std::optional<Tensor>& teacher_rows,
                            int64_t width, int64_t vocab, int64_t student_kind) {
    const char* op = "trb::verify";
    // 1. Every argument is valid by itself and fits the others.
    const int64_t columns = check_verify_logits(op, student, teacher, vocab);
    check(width >= 1 && width <= std::numeric_limits<int32_t>::max(), op,
          ": width must be at least 1 and less than 2^31, got ", width);
    check(student_kind >= 0 && student_kind <= 2, op,
          ": student_kind must be 0 (logits), 1 (probabilities) or 2 (logits divided by the temperature), got ",
          student_kind);
    check_indices(op, "draft_tokens", draft_tokens, "[N]", -1, student);
    check_indices(op, "offsets", offsets, "[B + 1]", -1, student);
    check(offsets.size(0) >= 1, op, ": offsets must have shape [B + 1], got [0]");
    const int64_t rows = draft_tokens.size(0), requests = offsets.size(0) - 1;
    check_column(op, "epsilon", epsilon, "[B]", requests, ScalarType::Float, student);
    check_column(op, "temperature", temperature, "[B]", requests, ScalarType::Float, student);
    check_column(op, "accept_uniform", accept_uniform, "[N]", rows, ScalarType::Double, student);
    check_column(op, "draw_uniform", draw_uniform, "[N]", rows, ScalarType::Double, student);
    check_row_indices(op, "student_rows", "student_logits", student_rows, rows, student, student);
    check_row_indices(op, "teacher_rows", "teacher_logits", teacher_rows, rows, teacher, student);

    // 2. The device gets the arguments as plain data; `run` adds the outputs.
    VerifyArrays arrays{};
    arrays.rows = rows;
    arrays.requests = requests;
    arrays.width = width;
    arrays.vocab = columns;
    arrays.student_rows = student.size(0);
    arrays.teacher_rows = teacher.size(0);
    arrays.student_kind = static_cast<StudentKind>(student_kind);
    arrays.draft_tokens = indices_of(draft_tokens);
    arrays.offsets = indices_of(offsets);
    arrays.student_row = indices_of(student_rows);
    arrays.teacher_row = indices_of(teacher_rows);
    arrays.epsilon = column_of<float>(epsilon);
    arrays.temperature = column_of<float>(temperature);
    arrays.accept_uniform = column_of<double>(accept_uniform);
    arrays.draw_uniform = column_of<double>(draw_uniform);
    return {op, student, teacher, arrays};
  }

  static void run(VerifyCall& call, const Six& outputs, bool log_probs) {
    const auto& [tokens, emitted, accepted, beta, kl, out_log_probs] = outputs;
    VerifyArrays& arrays = call.arrays;
    arrays.tokens = tokens.mutable_data_ptr();
    arrays.int64_tokens = tokens.scalar_type() == ScalarType::Long;
    arrays.emitted = static_cast<int32_t*>(emitted.mutable_data_ptr());
    arrays.accepted = static_cast<int32_t*>(accepted.mutable_data_ptr());
    arrays.beta = static_cast<float*>(beta.mutable_data_ptr());
    arrays.kl = static_cast<float*>(kl.mutable_data_ptr());
    arrays.log_probs = log_probs ? static_cast<float*>(out_log_probs.mutable_data_ptr()) : nullptr;
    run_verify(call);
  }
};

// Registers the operator. Used in a STABLE_TORCH_LIBRARY_IMPL block of the device.
#define TRB_REGISTER_VERIFY(m, run_verify)                               \
  m.impl("verify", TORCH_BOX(&trb::VerifyOperator<run_verify>::verify)); \
  m.impl("verify.out", TORCH_BOX(&trb::VerifyOperator<run_verify>::verify_out))

}  // namespace trb
