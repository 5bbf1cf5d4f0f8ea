// Defines what the calls of verify have in common for any kind of teacher: the checks of the arguments, and the
// outputs.
#pragma once

#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "verify_requests.h"

namespace trb {

// The arguments that do not depend on the kind of teacher.
struct VerifyInputs {
  const Tensor& student;
  const Tensor& draft_tokens;
  const Tensor& offsets;
  const Tensor& epsilon;
  const Tensor& temperature;
  const Tensor& accept_uniform;
  const Tensor& draw_uniform;
  const std::optional<Tensor>& student_rows;
  const std::optional<Tensor>& teacher_rows;
  int64_t width;
  int64_t student_kind;
};

using NamedTensor = std::pair<const char*, const Tensor*>;

// tokens, emitted, accepted, beta, kl, log_probs
using VerifyOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline Indices indices_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.scalar_type() == ScalarType::Long};
}
inline Indices indices_of(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? indices_of(*tensor) : Indices{nullptr, 0, false};
}
template <typename T>
Column<T> column_of(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0)};
}

// Checks the arguments and returns them as plain data without the outputs. `columns` of the logits count, and
// `teacher`, which errors call `teacher_name`, has a row for each of the teacher's.
inline VerifyArrays checked_arrays(const char* op, const VerifyInputs& in, int64_t columns, const char* teacher_name,
                                   const Tensor& teacher) {
  // 1. Every argument is valid by itself and fits the others.
  check(in.width >= 1 && in.width <= std::numeric_limits<int32_t>::max(), op,
        ": width must be at least 1 and less than 2^31, got ", in.width);
  check(in.student_kind >= 0 && in.student_kind <= 2, op,
        ": student_kind must be 0 (logits), 1 (probabilities) or 2 (logits divided by the temperature), got ",
        in.student_kind);
  check_indices(op, "draft_tokens", in.draft_tokens, "[N]", -1, in.student);
  check_indices(op, "offsets", in.offsets, "[B + 1]", -1, in.student);
  check(in.offsets.size(0) >= 1, op, ": offsets must have shape [B + 1], got [0]");
  const int64_t rows = in.draft_tokens.size(0), requests = in.offsets.size(0) - 1;
  check_column(op, "epsilon", in.epsilon, "[B]", requests, ScalarType::Float, in.student);
  check_column(op, "temperature", in.temperature, "[B]", requests, ScalarType::Float, in.student);
  check_column(op, "accept_uniform", in.accept_uniform, "[N]", rows, ScalarType::Double, in.student);
  check_column(op, "draw_uniform", in.draw_uniform, "[N]", rows, ScalarType::Double, in.student);
  check_row_indices(op, "student_rows", "student_logits", in.student_rows, rows, in.student, in.student);
  check_row_indices(op, "teacher_rows", teacher_name, in.teacher_rows, rows, teacher, in.student);

  // 2. The plain data.
  VerifyArrays arrays{};
  arrays.rows = rows;
  arrays.requests = requests;
  arrays.width = in.width;
  arrays.vocab = columns;
  arrays.student_rows = in.student.size(0);
  arrays.teacher_rows = teacher.size(0);
  arrays.student_kind = static_cast<StudentKind>(in.student_kind);
  arrays.draft_tokens = indices_of(in.draft_tokens);
  arrays.offsets = indices_of(in.offsets);
  arrays.student_row = indices_of(in.student_rows);
  arrays.teacher_row = indices_of(in.teacher_rows);
  arrays.epsilon = column_of<float>(in.epsilon);
  arrays.temperature = column_of<float>(in.temperature);
  arrays.accept_uniform = column_of<double>(in.accept_uniform);
  arrays.draw_uniform = column_of<double>(in.draw_uniform);
  return arrays;
}

inline VerifyOutputs new_outputs(const Tensor& student, const VerifyArrays& arrays, bool log_probs) {
  const int64_t rows = arrays.rows, requests = arrays.requests, width = arrays.width;
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
    return new_empty(student, shape, dtype);
  };
  return {empty({requests, width}, ScalarType::Long),
          empty({requests}, ScalarType::Int),
          empty({requests}, ScalarType::Int),
          empty({rows}, ScalarType::Float),
          empty({rows}, ScalarType::Float),
          log_probs ? empty({requests, width, 3}, ScalarType::Float) : empty({0, 0, 3}, ScalarType::Float)};
}

// Checks the outputs that the caller gives. `teacher` names the tensors of the teacher.
inline void check_outputs(const char* op, const VerifyInputs& in, const std::vector<NamedTensor>& teacher,
                          const VerifyArrays& arrays, const VerifyOutputs& outputs, bool log_probs) {
  const auto& [tokens, emitted, accepted, beta, kl, out_log_probs] = outputs;
  const int64_t rows = arrays.rows, requests = arrays.requests, width = arrays.width;
  // 1. They have the shapes and dtypes that `verify` would have allocated.
  check_out(op, "tokens", tokens, {requests, width}, {ScalarType::Int, ScalarType::Long}, in.student);
  check_out(op, "emitted", emitted, {requests}, {ScalarType::Int}, in.student);
  check_out(op, "accepted", accepted, {requests}, {ScalarType::Int}, in.student);
  check_out(op, "beta", beta, {rows}, {ScalarType::Float}, in.student);
  check_out(op, "kl", kl, {rows}, {ScalarType::Float}, in.student);
  if (log_probs) {
    check_out(op, "log_probs", out_log_probs, {requests, width, 3}, {ScalarType::Float}, in.student);
  } else {
    check(out_log_probs.numel() == 0, op, ": log_probs must have no element if log_probs=False, got shape ",
          shape_of(out_log_probs));
  }
  // 2. No output shares memory with another output or with an input, which the device reads while it writes.
  const NamedTensor written[] = {{"tokens", &tokens}, {"emitted", &emitted}, {"accepted", &accepted},
                                 {"beta", &beta},     {"kl", &kl},           {"log_probs", &out_log_probs}};
  std::vector<NamedTensor> read = {{"student_logits", &in.student},   {"draft_tokens", &in.draft_tokens},
                                   {"offsets", &in.offsets},          {"epsilon", &in.epsilon},
                                   {"temperature", &in.temperature},  {"accept_uniform", &in.accept_uniform},
                                   {"draw_uniform", &in.draw_uniform}};
  read.insert(read.end(), teacher.begin(), teacher.end());
  if (in.student_rows.has_value()) read.emplace_back("student_rows", &*in.student_rows);
  if (in.teacher_rows.has_value()) read.emplace_back("teacher_rows", &*in.teacher_rows);
  for (const NamedTensor& output : written) {
    for (const NamedTensor& other : written) {
      if (&other < &output) check_apart(op, output.first, *output.second, other.first, *other.second);
    }
    for (const NamedTensor& input : read) check_apart(op, output.first, *output.second, input.first, *input.second);
  }
}

inline void set_outputs(VerifyArrays& arrays, const VerifyOutputs& outputs, bool log_probs) {
  const auto& [tokens, emitted, accepted, beta, kl, out_log_probs] = outputs;
  arrays.tokens = tokens.mutable_data_ptr();
  arrays.int64_tokens = tokens.scalar_type() == ScalarType::Long;
  arrays.emitted = static_cast<int32_t*>(emitted.mutable_data_ptr());
  arrays.accepted = static_cast<int32_t*>(accepted.mutable_data_ptr());
  arrays.beta = static_cast<float*>(beta.mutable_data_ptr());
  arrays.kl = static_cast<float*>(kl.mutable_data_ptr());
  arrays.log_probs = log_probs ? static_cast<float*>(out_log_probs.mutable_data_ptr()) : nullptr;
}

}  // namespace trb
