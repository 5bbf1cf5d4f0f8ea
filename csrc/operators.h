// The operators as torch calls them, the same on every device: validation, allocation of the outputs, and one request
// to the device's rows. A device provides  void run(const Request&)  and registers Operators<run>.
#pragma once

#include <tuple>

#include "checks.h"

namespace trb {

struct Request {  // at least one row; an output that is not wanted is null
  const char* op;
  const Tensor& student;  // [N, V]
  const Tensor& teacher;
  double temperature;
  double epsilon = 0.0;                     // where epsilon_per_row is null
  const Tensor* epsilon_per_row = nullptr;  // float32 [N]
  const Tensor* uniform = nullptr;          // float64 [N], with token
  float* beta = nullptr;                    // [N]
  float* kl = nullptr;                      // [N]
  int32_t* sweeps = nullptr;                // [N]
  float* log_probs = nullptr;               // [N, V], contiguous
  int64_t* token = nullptr;                 // [N], and the three below with it
  float* log_prob = nullptr;
  float* student_log_prob = nullptr;
  float* teacher_log_prob = nullptr;
};

template <void (*run)(const Request&)>
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

  static void set_epsilon(Request& request, double epsilon) {
    check_epsilon(request.op, epsilon);
    request.epsilon = epsilon;
  }
  static void set_epsilon(Request& request, const Tensor& epsilon) {
    check_per_row(request.op, "epsilon", epsilon, ScalarType::Float, request.student);
    request.epsilon_per_row = &epsilon;
  }

  template <typename Epsilon>
  static Request checked(const char* op, const Tensor& student, const Tensor& teacher, const Epsilon& epsilon,
                         double temperature) {
    check_pair(op, student, teacher, temperature);
    Request request{op, student, teacher, temperature};
    set_epsilon(request, epsilon);
    return request;
  }

  static void run_rows(const Request& request) {
    if (request.student.size(0) > 0) run(request);
  }

  template <typename Epsilon>
  static Triple solve_any(const char* op, const Tensor& student, const Tensor& teacher, const Epsilon& epsilon,
                          double temperature) {
    Request request = checked(op, student, teacher, epsilon, temperature);
    const int64_t rows = student.size(0);
    Tensor beta = new_empty(student, {rows}, ScalarType::Float), kl = new_empty(student, {rows}, ScalarType::Float),
           sweeps = new_empty(student, {rows}, ScalarType::Int);
    request.beta = floats(beta);
    request.kl = floats(kl);
    request.sweeps = static_cast<int32_t*>(sweeps.mutable_data_ptr());
    run_rows(request);
    return {beta, kl, sweeps};
  }

  template <typename Epsilon>
  static Triple blend_any(const char* op, const Tensor& student, const Tensor& teacher, const Epsilon& epsilon,
                          double temperature) {
    Request request = checked(op, student, teacher, epsilon, temperature);
    const int64_t rows = student.size(0), vocab = student.size(1);
    Tensor log_probs = new_empty(student, {rows, vocab}, ScalarType::Float),
           beta = new_empty(student, {rows}, ScalarType::Float), kl = new_empty(student, {rows}, ScalarType::Float);
    request.beta = floats(beta);
    request.kl = floats(kl);
    request.log_probs = floats(log_probs);
    run_rows(request);
    return {log_probs, beta, kl};
  }

  template <typename Epsilon>
  static Six sample_any(const char* op, const Tensor& student, const Tensor& teacher, const Epsilon& epsilon,
                        const Tensor& uniform, double temperature) {
    Request request = checked(op, student, teacher, epsilon, temperature);
    check_per_row(op, "uniform", uniform, ScalarType::Double, student);
    const int64_t rows = student.size(0);
    Tensor token = new_empty(student, {rows}, ScalarType::Long),
           log_prob = new_empty(student, {rows}, ScalarType::Float),
           student_log_prob = new_empty(student, {rows}, ScalarType::Float),
           teacher_log_prob = new_empty(student, {rows}, ScalarType::Float),
           beta = new_empty(student, {rows}, ScalarType::Float), kl = new_empty(student, {rows}, ScalarType::Float);
    request.uniform = &uniform;
    request.beta = floats(beta);
    request.kl = floats(kl);
    request.token = static_cast<int64_t*>(token.mutable_data_ptr());
    request.log_prob = floats(log_prob);
    request.student_log_prob = floats(student_log_prob);
    request.teacher_log_prob = floats(teacher_log_prob);
    run_rows(request);
    return {token, log_prob, student_log_prob, teacher_log_prob, beta, kl};
  }
};

// In a STABLE_TORCH_LIBRARY_IMPL block of the device.
#define TRB_REGISTER_OPERATORS(m, run)                                     \
  m.impl("blend", TORCH_BOX(&trb::Operators<run>::blend));                 \
  m.impl("blend.per_row", TORCH_BOX(&trb::Operators<run>::blend_per_row)); \
  m.impl("solve", TORCH_BOX(&trb::Operators<run>::solve));                 \
  m.impl("solve.per_row", TORCH_BOX(&trb::Operators<run>::solve_per_row)); \
  m.impl("sample", TORCH_BOX(&trb::Operators<run>::sample));               \
  m.impl("sample.per_row", TORCH_BOX(&trb::Operators<run>::sample_per_row))

}  // namespace trb
