// torch.ops.trb on the CPU: rows are dealt to threads; with fewer rows than threads, each row's blocks are.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "../operators.h"
#include "huge_pages.h"
#include "isa.h"
#include "row_solver.h"

namespace trb::cpu {
namespace {

constexpr int64_t kFreshBytes = 32 << 20;  // glibc maps what is larger afresh every time

LogitsRow row_of(const Tensor& logits, int64_t row) {
  const char* base = static_cast<const char*>(logits.const_data_ptr());
  return {base + row * logits.stride(0) * static_cast<int64_t>(logits.element_size()), logits.stride(1),
          logits.scalar_type()};
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
  request.log_prob[row] = draw.log_prob;
  request.student_log_prob[row] = draw.student_log_prob;
  request.teacher_log_prob[row] = draw.teacher_log_prob;
}

void run(const Request& request) {
  static const SweepTable* const sweeps = choose_sweeps();
  check(sweeps != nullptr, "trb: TRB_CPU_ISA must be generic, avx2 or avx512, and run on this machine, got '",
        std::getenv("TRB_CPU_ISA"), "'");
  const int64_t rows = request.student.size(0), vocab = request.student.size(1);
  const PerRow<float> epsilon(request.epsilon_per_row, request.epsilon);
  const PerRow<double> uniform(request.uniform, 0.0);
  const int64_t bytes = static_cast<int64_t>(sizeof(float)) * rows * vocab;
  if (request.log_probs != nullptr && bytes >= kFreshBytes) prefer_huge_pages(request.log_probs, bytes);
  const bool spread = rows < num_threads();
  const auto solve_range = [&](int64_t begin, int64_t end) {
    RowSolver solver(vocab, spread, *sweeps);
    for (int64_t row = begin; row < end; ++row) {
      const RowPair pair{row_of(request.student, row), row_of(request.teacher, row), vocab, 1.0 / request.temperature};
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
