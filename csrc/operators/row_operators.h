// Defines solve, blend and sample as torch calls them, alike for every device: they check the arguments, allocate the
// outputs, and hand one Call to the device. A device provides  void run(const Call&)  and registers Operators<run>.
#pragma once

#include <tuple>

#include "checks.h"

namespace trb {

// One call of an operator, of at least one row. An output that the operator does not return is null.
struct Call {
  const char* op;
  const Tensor& student;  // [N, V]
  const Tensor& teacher;
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

template <void (*run)(const Call&)>
struct Operators {
  using Triple = std::tuple<Tensor, Tensor, Tensor>;
  using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static Triple solve(const Tensor& student, const Tensor& teacher, double epsilon, double temperature) {
    return solve_any("trb::solve", student, teacher, epsilon, temperature);
  }
  static Triple solve_per_row(const Tensor& student, const Tensor& teacher, const Tensor& epsilon, double temperature) {
    return solve_any("trb::solve", student, teacher, epsilon, temperature);
  }
  static Triple blend(const Tensor& student, const Tensor& teacher, double epsilon, double temperature) {
    return blend_any("trb::blend", student, teacher, epsilon, temperature);
  }
  static Triple blend_per_row(const Tensor& student, const Tensor& teacher, const Tensor& epsilon, double temperature) {
    return blend_any("trb::blend", student, teacher, epsilon, temperature);
  }
  static Six sample(const Tensor& student, const Tensor& teacher, double epsilon, const Tensor& uniform,
                    double temperature) {
    return sample_any("trb::sample", student, teacher, epsilon, uniform, temperature);
  }
  static Six sample_per_row(const Tensor& student, const Tensor& teacher, const Tensor& epsilon, const Tensor& uniform,
                            double temperature) {
    return sample_any("trb::sample", student, teacher, epsilon, uniform, temperature);
  }

 private:
  static float* floats(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

  static void set_epsilon(Call& call, double epsilon) {
    check_epsilon(call.op, epsilon);
    call.epsilon = epsilon;
  }
  static void set_epsilon(Call& call, const Tensor& epsilon) {
    check_per_row(call.op, "epsilon", epsilon, ScalarType::Float, call.student);
    call.epsilon_per_row = &epsilon;
  }

  template <typename Epsilon>
  static Call checked(const char* op, const Tensor& student, const Tensor& teacher, const Epsilon& epsilon,
                      double temperature) {
    check_pair(op, student, teacher, temperature);
    Call call{op, student, teacher, temperature};
    set_epsilon(call, epsilon);
    return call;
  }

  static void run_rows(const Call& call) {
    if (call.student.size(0) > 0) run(call);
  }

  template <typename Epsilon>
  static Triple solve_any(const char* op, const Tensor& student, const Tensor& teacher, const Epsilon& epsilon,
                          double temperature) {
    Call call = checked(op, student, teacher, epsilon, temperature);
    const int64_t rows = student.size(0);
    Tensor beta = new_empty(student, {rows}, ScalarType::Float), kl = new_empty(student, {rows}, ScalarType::Float),
           sweeps = new_empty(student, {rows}, ScalarType::Int);
    call.beta = floats(beta);
    call.kl = floats(kl);
    call.sweeps = static_cast<int32_t*>(sweeps.mutable_data_ptr());
    run_rows(call);
    return {beta, kl, sweeps};
  }

  template <typename Epsilon>
  static Triple blend_any(const char* op, const Tensor& student, const Tensor& teacher, const Epsilon& epsilon,
                          double temperature) {
    Call call = checked(op, student, teacher, epsilon, temperature);
    const int64_t rows = student.size(0), vocab = student.size(1);
    Tensor log_probs = new_empty(student, {rows, vocab}, ScalarType::Float),
           beta = new_empty(student, {rows}, ScalarType::Float), kl = new_empty(student, {rows}, ScalarType::Float);
    call.beta = floats(beta);
    call.kl = floats(kl);
    call.log_probs = floats(log_probs);
    run_rows(call);
    return {log_probs, beta, kl};
  }

  template <typename Epsilon>
  static Six sample_any(const char* op, const Tensor& student, const Tensor& teacher, const Epsilon& epsilon,
                        const Tensor& uniform, double temperature) {
    Call call = checked(op, student, teacher, epsilon, temperature);
    check_per_row(op, "uniform", uniform, ScalarType::Double, student);
    const int64_t rows = student.size(0);
    Tensor token = new_empty(student, {rows}, ScalarType::Long),
           log_prob = new_empty(student, {rows}, ScalarType::Float),
           student_log_prob = new_empty(student, {rows}, ScalarType::Float),
           teacher_log_prob = new_empty(student, {rows}, ScalarType::Float),
           beta = new_empty(student, {rows}, ScalarType::Float), kl = new_empty(student, {rows}, ScalarType::Float);
    call.uniform = &uniform;
    call.beta = floats(beta);
    call.kl = floats(kl);
    call.token = static_cast<int64_t*>(token.mutable_data_ptr());
    call.log_prob = floats(log_prob);
    call.student_log_prob = floats(student_log_prob);
    call.teacher_log_prob = floats(teacher_log_prob);
    run_rows(call);
    return {token, log_prob, student_log_prob, teacher_log_prob, beta, kl};
  }
};

// Registers the operators. Used in a STABLE_TORCH_LIBRARY_IMPL block of the device.
#define TRB_REGISTER_OPERATORS(m, run)                                     \
  m.impl("blend", TORCH_BOX(&trb::Operators<run>::blend));                 \
  m.impl("blend.per_row", TORCH_BOX(&trb::Operators<run>::blend_per_row)); \
  m.impl("solve", TORCH_BOX(&trb::Operators<run>::solve));                 \
  m.impl("solve.per_row", TORCH_BOX(&trb::Operators<run>::solve_per_row)); \
  m.impl("sample", TORCH_BOX(&trb::Operators<run>::sample));               \
  m.impl("sample.per_row", TORCH_BOX(&trb::Operators<run>::sample_per_row))

}  // namespace trb
