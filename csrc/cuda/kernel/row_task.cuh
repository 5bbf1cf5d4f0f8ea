// Finds the arguments of one row: its request, its rows of the logits, its draft, epsilon, temperature and uniforms.
#pragma once

#include "block_state.cuh"
#include "row_source.cuh"

namespace trb::cuda {

// All lanes of a warp: the request that a row belongs to, or -1. Reads every offset, 32 at a time, and does not bisect,
// because an offset that is out of order may be anywhere and must not change which rows the other requests have.
__device__ __forceinline__ int64_t request_of_row(const VerifyArrays& verify, int64_t row, int lane) {
  int64_t reached_before = 0;  // the `reached` of rows_between
#pragma unroll 1
  for (int64_t first = 0; first < verify.requests; first += kWarp) {
    const int64_t request = first + lane;
    const bool there = request < verify.requests;
    const int64_t begin = there ? verify.offsets[request] : 0, end = there ? verify.offsets[request + 1] : 0;
    const int64_t up_to = max_up_to_lane(end <= verify.rows ? max(end, reached_before) : reached_before, lane);
    int64_t reached = __shfl_up_sync(kAllLanes, up_to, 1);
    if (lane == 0) reached = reached_before;
    const RequestRows rows = rows_between(begin, end, verify.rows, &reached);
    const unsigned holding = __ballot_sync(kAllLanes, there && rows.begin <= row && row < rows.begin + rows.count);
    if (holding != 0) return first + __ffs(holding) - 1;
    reached_before = __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
  return -1;
}

// Warp 0: writes the row's task to state.task, and its epsilon and draft to the state.
template <int kWarps>
__device__ __forceinline__ void find_task(const KernelArgs& args, int64_t row, BlockState<kWarps>& state, int lane) {
  const VerifyArrays& verify = args.verify;
  const int64_t request = request_of_row(verify, row, lane);
  if (lane != 0) return;
  RowTask task{0, 0, 1.0f, 0};
  if (request >= 0 && row_in_range(verify, row)) {
    const int64_t begin = verify.offsets[request], draft = verify.draft_tokens[row];
    const RequestRows rows{begin, verify.offsets[request + 1] - begin, false};
    // A rejected draft needs draw_uniform as well, which token_from checks once the draft is rejected.
    const double uniform = draft >= 0 ? verify.accept_uniform[row] : verify.draw_uniform[row];
    task = {verify.student_row[row], verify.teacher_row[row], verify.temperature[request],
            !request_at_fault(verify, request, rows) && is_uniform(uniform)};
    state.epsilon = verify.epsilon[request];
    state.draft.token = draft;
  }
  state.task = task;
}

// One thread: reads what solving and drawing need besides the row's logits.
template <typename T, int kWarps>
__device__ __forceinline__ void read_row_arguments(const KernelArgs& args, int64_t row, const RowPair<T>& pair,
                                                   BlockState<kWarps>& state) {
  if (!args.verifies()) {
    state.draft.token = -1;
    state.temperature = args.temperature;
    state.epsilon = args.epsilon_per_row ? args.epsilon_per_row[row * args.epsilon_stride] : args.epsilon;
    state.uniform = args.token ? args.uniform[row * args.uniform_stride] : 0.0;
    return;
  }
  state.temperature = Temperature(state.task.temperature);
  state.uniform = args.verify.draw_uniform[row];
  const int64_t draft = state.draft.token;
  if (draft < 0) return;
  state.accept_uniform = args.verify.accept_uniform[row];
  state.draft.student_logit = pair.student_logit(draft);
  state.draft.teacher_logit = pair.teacher.logit(draft);
}

// Prefetches the chunks of a row that this block solves later into the second-level cache.
template <typename T>
__device__ __forceinline__ void prefetch_row(const KernelArgs& args, int64_t row, Chunks chunks, int lane) {
  const VerifyArrays& verify = args.verify;
  int64_t student = row, teacher = row;
  if (args.verifies()) {
    student = verify.student_row[row];
    teacher = verify.teacher_row[row];
    if (student < 0 || student >= verify.student_rows || teacher < 0 || teacher >= verify.teacher_rows) return;
  }
  prefetch(RowPair<T>(args, student, teacher, 1.0f), chunks, lane);
}

}  // namespace trb::cuda
