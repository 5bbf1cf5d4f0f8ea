// Runs verify over the requests of a call, with the solver of one kind of teacher. Threads share the requests. Each
// thread judges a request's rows in order and stops at the first rejected draft, so that the rows after it cost
// nothing. If there are fewer requests than threads, the threads share the blocks of each row instead.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../operators/verify_requests.h"
#include "float_environment.h"
#include "row_answer.h"
#include "sweep/sweep_table.h"

namespace trb::cpu {

template <typename Solver, typename Row>
RowVerdict judge(const VerifyArrays& arrays, int64_t request, int64_t row, Row pair, Solver& solver) {
  // 1. The row is solved. `verdict` is a fault until the row has a token.
  RowVerdict verdict;
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

// `row_of(row, inverse_temperature)` is what Solver::solve takes of a row whose indices are in range.
template <typename Solver, typename RowOf>
void serve_requests(const VerifyArrays& arrays, const RowOf& row_of) {
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
    Solver solver(arrays.vocab, spread, sweeps);
    for (int64_t request = begin; request < end; ++request) {
      assemble_request(arrays, request, rows_of[request], [&](int64_t row) {
        if (!row_in_range(arrays, row)) return RowVerdict{};
        return judge(arrays, request, row, row_of(row, 1.0 / arrays.temperature[request]), solver);
      });
    }
  };
  if (spread) {
    serve(0, arrays.requests);
  } else {
    parallel_for(0, arrays.requests, 1, serve);
  }
}

}  // namespace trb::cpu
