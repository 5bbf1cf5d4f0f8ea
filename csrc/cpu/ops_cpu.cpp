// torch.ops.trb on the CPU: rows are dealt to threads; with fewer rows than threads, each row's blocks are.
#include <cmath>

#include "../operators.h"
#include "float_environment.h"
#include "huge_pages.h"
#include "row_solver.h"
#include "sweep_table.h"

namespace trb::cpu {
namespace {

constexpr int64_t kFreshBytes = 32 << 20;  // glibc maps what is larger afresh every time

// One number of each row: element `row` of a tensor, or the same for all.
template <typename T>
class PerRow {
 public:
  PerRow(const Tensor* values, double all)
      : values_(values != nullptr ? static_cast<const T*>(values->const_data_ptr()) : nullptr),
        stride_(values != nullptr ? values->stride(0) : 0),
        all_(all) {}
  double operator()(int64_t row) const {
    return values_ != nullptr ? static_cast<double>(values_[row * stride_]) : all_;
  }

 private:
  const T* values_;
  int64_t stride_;
  double all_;
};

// The outputs that the request wants of a row.
void write_row(const Request& request, int64_t row, double uniform, const RowAnswer& answer, const RowSolver& solver) {
  const Draw draw = request.token != nullptr ? solver.sample(uniform) : Draw{};
  // A uniform outside [0, 1) is a fault of the row: nothing of it may be used.
  const bool fault = request.token != nullptr && draw.token < 0;
  request.beta[row] = fault ? NAN : answer.beta;
  request.kl[row] = fault ? NAN : static_cast<float>(answer.kl);
  if (request.sweeps != nullptr) request.sweeps[row] = answer.sweeps;
  if (request.log_probs != nullptr) solver.write_log_probs(request.log_probs + row * request.student.size(1));
  if (request.token == nullptr) return;
  request.token[row] = draw.token;
  request.log_prob[row] = static_cast<float>(draw.log_probs.behavior);
  request.student_log_prob[row] = static_cast<float>(draw.log_probs.student);
  request.teacher_log_prob[row] = static_cast<float>(draw.log_probs.teacher);
}

void run(const Request& request) {
  const SweepTable& sweeps = sweep_table();
  const int64_t rows = request.student.size(0), vocab = request.student.size(1);
  const PerRow<float> epsilon(request.epsilon_per_row, request.epsilon);
  const PerRow<double> uniform(request.uniform, 0.0);
  const int64_t bytes = static_cast<int64_t>(sizeof(float)) * rows * vocab;
  if (request.log_probs != nullptr && bytes >= kFreshBytes) prefer_huge_pages(request.log_probs, bytes);
  const bool spread = rows < num_threads();
  const auto solve_range = [&](int64_t begin, int64_t end) {
    const DefaultFloats floats;
    RowSolver solver(vocab, spread, sweeps);
    for (int64_t row = begin; row < end; ++row) {
      const RowPair pair{logits_row(request.student, row), logits_row(request.teacher, row), vocab,
                         1.0 / request.temperature};
      const RowAnswer& answer = solver.solve(pair, epsilon(row));
      write_row(request, row, uniform(row), answer, solver);
    }
  };
  if (spread) {
    solve_range(0, rows);
  } else {
    parallel_for(0, rows, 1, solve_range);
  }
}

}  // namespace
}  // namespace trb::cpu

STABLE_TORCH_LIBRARY_IMPL(trb, CPU, m) { TRB_REGISTER_OPERATORS(m, trb::cpu::run); }
