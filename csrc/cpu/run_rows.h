// Runs solve, blend and sample over the rows of a call, with the solver of one kind of teacher. The threads share the
// rows, or the blocks of each row if there are fewer rows than threads.
#pragma once

#include <cmath>

#include "../operators/row_call.h"
#include "float_environment.h"
#include "huge_pages.h"
#include "row_answer.h"
#include "sweep/sweep_table.h"

namespace trb::cpu {

constexpr int64_t kFreshBytes = 32 << 20;  // glibc maps fresh pages for every larger allocation

// One number per row: element `row` of a tensor, or the same number for all rows.
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

// Writes the outputs of a row that the call wants.
template <typename Solver>
void write_row(const RowCall& call, int64_t row, double uniform, const RowAnswer& answer, const Solver& solver) {
  const Draw draw = call.token != nullptr ? solver.sample(uniform) : Draw{};
  // A uniform outside [0, 1) is a fault of the row, none of whose outputs may then be used.
  const bool fault = call.token != nullptr && draw.token < 0;
  call.beta[row] = fault ? NAN : answer.beta;
  call.kl[row] = fault ? NAN : static_cast<float>(answer.kl);
  if (call.sweeps != nullptr) call.sweeps[row] = answer.sweeps;
  if (call.log_probs != nullptr) solver.write_log_probs(call.log_probs + row * call.student.size(1));
  if (call.token == nullptr) return;
  call.token[row] = draw.token;
  call.log_prob[row] = static_cast<float>(draw.log_probs.behavior);
  call.student_log_prob[row] = static_cast<float>(draw.log_probs.student);
  call.teacher_log_prob[row] = static_cast<float>(draw.log_probs.teacher);
}

// `row_of(row)` is what Solver::solve takes of a row.
template <typename Solver, typename RowOf>
void run_rows(const RowCall& call, const RowOf& row_of) {
  const SweepTable& sweeps = sweep_table();
  const int64_t rows = call.student.size(0), vocab = call.student.size(1);
  const PerRow<float> epsilon(call.epsilon_per_row, call.epsilon);
  const PerRow<double> uniform(call.uniform, 0.0);
  const int64_t bytes = static_cast<int64_t>(sizeof(float)) * rows * vocab;
  if (call.log_probs != nullptr && bytes >= kFreshBytes) prefer_huge_pages(call.log_probs, bytes);
  const bool spread = rows < num_threads();
  const auto solve_range = [&](int64_t begin, int64_t end) {
    const DefaultFloats floats;
    Solver solver(vocab, spread, sweeps);
    for (int64_t row = begin; row < end; ++row) {
      const RowAnswer& answer = solver.solve(row_of(row), epsilon(row));
      write_row(call, row, uniform(row), answer, solver);
    }
  };
  if (spread) {
    solve_range(0, rows);
  } else {
    parallel_for(0, rows, 1, solve_range);
  }
}

}  // namespace trb::cpu
