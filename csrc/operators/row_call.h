// Defines a call of solve, blend or sample of any kind of teacher: what the calls have in common, the checks of it, and
// the outputs, which are allocated alike for every device.
#pragma once

#include <tuple>

#include "checks.h"

namespace trb {

// One call, of at least one row. An output that the operator does not return is null.
struct RowCall {
  const char* op;
  const Tensor& student;  // [N, V]
  double temperature;
  double epsilon = 0.0;                     // nats, if epsilon_per_row is null
  const Tensor* epsilon_per_row = nullptr;  // float32 [N]
  const Tensor* uniform = nullptr;          // float64 [N], only with token
  float* beta = nullptr;                    // [N]
  float* kl = nullptr;                      // [N]
  int32_t* sweeps = nullptr;                // [N]
  float* log_probs = nullptr;               // [N, V], contiguous
  int64_t* token = nullptr;                 // [N], as are the three below, which come with it
  float* log_prob = nullptr;
  float* student_log_prob = nullptr;
  float* teacher_log_prob = nullptr;
};

inline void set_epsilon(RowCall& call, double epsilon) {
  check_epsilon(call.op, epsilon);
  call.epsilon = epsilon;
}
inline void set_epsilon(RowCall& call, const Tensor& epsilon) {
  check_per_row(call.op, "epsilon", epsilon, ScalarType::Float, call.student);
  call.epsilon_per_row = &epsilon;
}

// Allocates the outputs of each operator and lets a device fill them. A device provides  void run(const Call&)  for a
// Call that is a RowCall with the teacher.
template <typename Call, void (*run)(const Call&)>
struct RowOutputs {
  using Triple = std::tuple<Tensor, Tensor, Tensor>;
  using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static Triple solve(Call call) {
    const int64_t rows = call.student.size(0);
    Tensor beta = per_row(call, ScalarType::Float), kl = per_row(call, ScalarType::Float),
           sweeps = per_row(call, ScalarType::Int);
    call.beta = floats(beta);
    call.kl = floats(kl);
    call.sweeps = static_cast<int32_t*>(sweeps.mutable_data_ptr());
    if (rows > 0) run(call);
    return {beta, kl, sweeps};
  }

  static Triple blend(Call call) {
    const int64_t rows = call.student.size(0), vocab = call.student.size(1);
    Tensor log_probs = new_empty(call.student, {rows, vocab}, ScalarType::Float),
           beta = per_row(call, ScalarType::Float), kl = per_row(call, ScalarType::Float);
    call.beta = floats(beta);
    call.kl = floats(kl);
    call.log_probs = floats(log_probs);
    if (rows > 0) run(call);
    return {log_probs, beta, kl};
  }

  static Six sample(Call call, const Tensor& uniform) {
    check_per_row(call.op, "uniform", uniform, ScalarType::Double, call.student);
    const int64_t rows = call.student.size(0);
    Tensor token = per_row(call, ScalarType::Long), log_prob = per_row(call, ScalarType::Float),
           student_log_prob = per_row(call, ScalarType::Float), teacher_log_prob = per_row(call, ScalarType::Float),
           beta = per_row(call, ScalarType::Float), kl = per_row(call, ScalarType::Float);
    call.uniform = &uniform;
    call.beta = floats(beta);
    call.kl = floats(kl);
    call.token = static_cast<int64_t*>(token.mutable_data_ptr());
    call.log_prob = floats(log_prob);
    call.student_log_prob = floats(student_log_prob);
    call.teacher_log_prob = floats(teacher_log_prob);
    if (rows > 0) run(call);
    return {token, log_prob, student_log_prob, teacher_log_prob, beta, kl};
  }

 private:
  static Tensor per_row(const Call& call, ScalarType dtype) {
    return new_empty(call.student, {call.student.size(0)}, dtype);
  }
  static float* floats(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }
};

}  // namespace trb
