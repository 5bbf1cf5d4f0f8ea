// torch.ops.trb on the CPU: rows are dealt to threads; with fewer rows than threads, each row's blocks are.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <tuple>

#include "../checks.h"
#include "huge_pages.h"
#include "isa.h"
#include "row_solver.h"

namespace trb::cpu {
namespace {

constexpr int64_t kFreshBytes = 32 << 20;  // glibc maps what is larger afresh every time

using Triple = std::tuple<Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

LogitsRow row_of(const Tensor& logits, int64_t row) {
  const char* base = static_cast<const char*>(logits.const_data_ptr());
  return {base + row * logits.stride(0) * static_cast<int64_t>(logits.element_size()), logits.stride(1),
          logits.scalar_type()};
}

// epsilon of each row: one float for all, or element `row` of a float32 tensor.
struct Budget {
  double value = 0.0;
  const float* per_row = nullptr;
  int64_t stride = 0;

  double operator()(int64_t row) const { return per_row ? static_cast<double>(per_row[row * stride]) : value; }
};

Budget budget_of(const char* op, double epsilon, const Tensor&) {
  check_epsilon(op, epsilon);
  return {epsilon};
}

Budget budget_of(const char* op, const Tensor& epsilon, const Tensor& student) {
  check_per_row(op, "epsilon", epsilon, ScalarType::Float, student);
  return {0.0, static_cast<const float*>(epsilon.const_data_ptr()), epsilon.stride(0)};
}

const SweepTable* choose_sweeps() {
  const char* isa = choose_isa();
  if (isa == nullptr) return nullptr;
#ifdef TRB_X86
  if (std::strcmp(isa, "avx512") == 0) return &kAvx512Sweeps;
  if (std::strcmp(isa, "avx2") == 0) return &kAvx2Sweeps;
#endif
  return &kGenericSweeps;
}

// Solves every row and hands (row, answer, solver) to `consume`, which writes that row's outputs.
template <typename Consume>
void for_each_row(const Tensor& student, const Tensor& teacher, const Budget& epsilon, double temperature,
                  const Consume& consume) {
  const int64_t rows = student.size(0), vocab = student.size(1);
  if (rows == 0) return;
  static const SweepTable* const sweeps = choose_sweeps();
  check(sweeps != nullptr, "trb: TRB_CPU_ISA must be generic, avx2 or avx512, and run on this machine, got '",
        std::getenv("TRB_CPU_ISA"), "'");
  const bool spread = rows < num_threads();
  const auto solve_range = [&](int64_t begin, int64_t end) {
    RowSolver row_solver(vocab, spread, *sweeps);
    for (int64_t row = begin; row < end; ++row) {
      const RowAnswer& answer =
          row_solver.solve({row_of(student, row), row_of(teacher, row), vocab, 1.0 / temperature}, epsilon(row));
      consume(row, answer, row_solver);
    }
  };
  if (spread) {
    solve_range(0, rows);
  } else {
    parallel_for(0, rows, 1, solve_range);
  }
}

float* floats(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

template <typename Epsilon>
Triple solve(const Tensor& student_logits, const Tensor& teacher_logits, Epsilon epsilon, double temperature) {
  check_pair("trb::solve", student_logits, teacher_logits, temperature);
  const Budget budget = budget_of("trb::solve", epsilon, student_logits);
  const int64_t rows = student_logits.size(0);
  Tensor beta = new_empty(student_logits, {rows}, ScalarType::Float);
  Tensor kl = new_empty(student_logits, {rows}, ScalarType::Float);
  Tensor sweeps = new_empty(student_logits, {rows}, ScalarType::Int);
  float *beta_out = floats(beta), *kl_out = floats(kl);
  int32_t* sweeps_out = static_cast<int32_t*>(sweeps.mutable_data_ptr());
  for_each_row(student_logits, teacher_logits, budget, temperature,
               [&](int64_t row, const RowAnswer& answer, const RowSolver&) {
                 beta_out[row] = answer.beta;
                 kl_out[row] = static_cast<float>(answer.kl);
                 sweeps_out[row] = answer.sweeps;
               });
  return {beta, kl, sweeps};
}

template <typename Epsilon>
Triple blend(const Tensor& student_logits, const Tensor& teacher_logits, Epsilon epsilon, double temperature) {
  check_pair("trb::blend", student_logits, teacher_logits, temperature);
  const Budget budget = budget_of("trb::blend", epsilon, student_logits);
  const int64_t rows = student_logits.size(0), vocab = student_logits.size(1);
  Tensor log_probs = new_empty(student_logits, {rows, vocab}, ScalarType::Float);
  Tensor beta = new_empty(student_logits, {rows}, ScalarType::Float);
  Tensor kl = new_empty(student_logits, {rows}, ScalarType::Float);
  if (4 * rows * vocab >= kFreshBytes) prefer_huge_pages(log_probs.mutable_data_ptr(), 4 * rows * vocab);
  float *log_probs_out = floats(log_probs), *beta_out = floats(beta), *kl_out = floats(kl);
  for_each_row(student_logits, teacher_logits, budget, temperature,
               [&](int64_t row, const RowAnswer& answer, const RowSolver& row_solver) {
                 beta_out[row] = answer.beta;
                 kl_out[row] = static_cast<float>(answer.kl);
                 row_solver.write_log_probs(log_probs_out + row * vocab);
               });
  return {log_probs, beta, kl};
}

template <typename Epsilon>
Six sample(const Tensor& student_logits, const Tensor& teacher_logits, Epsilon epsilon, const Tensor& uniform,
           double temperature) {
  check_pair("trb::sample", student_logits, teacher_logits, temperature);
  const Budget budget = budget_of("trb::sample", epsilon, student_logits);
  check_per_row("trb::sample", "uniform", uniform, ScalarType::Double, student_logits);
  const int64_t rows = student_logits.size(0);
  Tensor token = new_empty(student_logits, {rows}, ScalarType::Long);
  Tensor log_prob = new_empty(student_logits, {rows}, ScalarType::Float);
  Tensor student_log_prob = new_empty(student_logits, {rows}, ScalarType::Float);
  Tensor teacher_log_prob = new_empty(student_logits, {rows}, ScalarType::Float);
  Tensor beta = new_empty(student_logits, {rows}, ScalarType::Float);
  Tensor kl = new_empty(student_logits, {rows}, ScalarType::Float);
  int64_t* token_out = static_cast<int64_t*>(token.mutable_data_ptr());
  float *log_prob_out = floats(log_prob), *student_out = floats(student_log_prob),
        *teacher_out = floats(teacher_log_prob), *beta_out = floats(beta), *kl_out = floats(kl);
  const double* u = static_cast<const double*>(uniform.const_data_ptr());
  const int64_t u_stride = uniform.stride(0);
  for_each_row(student_logits, teacher_logits, budget, temperature,
               [&](int64_t row, const RowAnswer& answer, const RowSolver& row_solver) {
                 const Draw draw = row_solver.sample(u[row * u_stride]);
                 // A uniform outside [0, 1) is a fault of the row: nothing of it may be used.
                 const bool fault = draw.token < 0;
                 token_out[row] = draw.token;
                 log_prob_out[row] = draw.log_prob;
                 student_out[row] = draw.student_log_prob;
                 teacher_out[row] = draw.teacher_log_prob;
                 beta_out[row] = fault ? NAN : answer.beta;
                 kl_out[row] = fault ? NAN : static_cast<float>(answer.kl);
               });
  return {token, log_prob, student_log_prob, teacher_log_prob, beta, kl};
}

Triple solve_float(const Tensor& s, const Tensor& t, double e, double temperature) {
  return solve(s, t, e, temperature);
}
Triple solve_per_row(const Tensor& s, const Tensor& t, const Tensor& e, double temperature) {
  return solve<const Tensor&>(s, t, e, temperature);
}
Triple blend_float(const Tensor& s, const Tensor& t, double e, double temperature) {
  return blend(s, t, e, temperature);
}
Triple blend_per_row(const Tensor& s, const Tensor& t, const Tensor& e, double temperature) {
  return blend<const Tensor&>(s, t, e, temperature);
}
Six sample_float(const Tensor& s, const Tensor& t, double e, const Tensor& u, double temperature) {
  return sample(s, t, e, u, temperature);
}
Six sample_per_row(const Tensor& s, const Tensor& t, const Tensor& e, const Tensor& u, double temperature) {
  return sample<const Tensor&>(s, t, e, u, temperature);
}

}  // namespace
}  // namespace trb::cpu

STABLE_TORCH_LIBRARY_IMPL(trb, CPU, m) {
  m.impl("blend", TORCH_BOX(&trb::cpu::blend_float));
  m.impl("blend.per_row", TORCH_BOX(&trb::cpu::blend_per_row));
  m.impl("solve", TORCH_BOX(&trb::cpu::solve_float));
  m.impl("solve.per_row", TORCH_BOX(&trb::cpu::solve_per_row));
  m.impl("sample", TORCH_BOX(&trb::cpu::sample_float));
  m.impl("sample.per_row", TORCH_BOX(&trb::cpu::sample_per_row));
}
