// Runs verify on the CPU. Threads share the requests. Each thread judges a request's rows in order and stops at the
// first rejected draft, so that the rows after it cost nothing. If there are fewer requests than threads, the threads
// share the blocks of each row instead.
#include "../operators/verify_operator.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "float_environment.h"
#include "row_solver.h"
#include "sweep/sweep_table.h"

namespace trb::cpu {
namespace {

RowVerdict judge(const VerifyCall& call, int64_t request, int64_t row, RowSolver& solver) {
  // 1. The row is solved. `verdict` is a fault until the row has a token.
  const VerifyArrays& arrays = call.arrays;
  RowVerdict verdict;
  if (!row_in_range(arrays, row)) return verdict;
  RowPair pair{logits_row(call.student, arrays.student_row[row]), logits_row(call.teacher, arrays.teacher_row[row]),
               arrays.vocab, 1.0 / arrays.temperature[request]};
  pair.student.to_logits = {arrays.student_kind, arrays.temperature[request], sweep_table().log};
  const RowAnswer& answer = solver.solve(pair, arrays.epsilon[request]);
  if (answer.status == Status::kFault) return verdict;
  // 2. A draft is accepted by its log-probabilities.
  Draw draw;
  draw.token = arrays.draft_tokens[row];
  bool accepted = false;
  if (draw.token >= 0) {
    const double uniform = arrays.accept_uniform[row];
    if (!is_uniform(uniform)) return verdict;
    draw.log_probs = solver.log_probs_at(draw.token);
    accepted = is_accepted(uniform, draw.log_probs.behavior, draw.log_probs.student);
  }
  // 3. A row without an accepted draft draws a token: from the residual if a draft was rejected, else from mu.
  if (!accepted) {
    const double uniform = arrays.draw_uniform[row];
    draw = draw.token >= 0 ? solver.sample_residual(uniform) : solver.sample(uniform);
    if (draw.token < 0) return verdict;
  }
  return {draw.token,
          accepted ? Verdict::kAccepted : Verdict::kDrawn,
          static_cast<float>(draw.log_probs.student),
          static_cast<float>(draw.log_probs.teacher),
          static_cast<float>(draw.log_probs.behavior),
          answer.beta,
          static_cast<float>(answer.kl)};
}

void run_verify(const VerifyCall& call) {
  const VerifyArrays& arrays = call.arrays;
  const SweepTable& sweeps = sweep_table();
  std::fill_n(arrays.beta, arrays.rows, NAN);
  std::fill_n(arrays.kl, arrays.rows, NAN);
  std::vector<RequestRows> rows_of;
  rows_of.reserve(arrays.requests);
  for (int64_t request = 0, reached = 0; request < arrays.requests; ++request) {
    rows_of.push_back(rows_between(arrays.offsets[request], arrays.offsets[request + 1], arrays.rows, &reached));
  }
  const bool spread = arrays.requests < num_threads();
  const auto serve = [&](int64_t begin, int64_t end) {
    const DefaultFloats floats;
    RowSolver solver(arrays.vocab, spread, sweeps);
    for (int64_t request = begin; request < end; ++request) {
      assemble_request(arrays, request, rows_of[request],
                       [&](int64_t row) { return judge(call, request, row, solver); });
    }
  };
  if (spread) {
    serve(0, arrays.requests);
  } else {
    parallel_for(0, arrays.requests, 1, serve);
  }
}

}  // namespace
}  // namespace trb::cpu

STABLE_TORCH_LIBRARY_IMPL(trb, CPU, m) { TRB_REGISTER_VERIFY(m, trb::cpu::run_verify); }
