// Finds the arguments of one row: its request, its rows of the logits, its draft, epsilon, temperature and uniforms.
#pragma once

#include "block_state.cuh"
#include "row_source.cuh"

namespace trb::cuda {

// All lanes of a warp: the request that a row belongs to, or -1. Reads the offsets in order, 32 at a time, and does not
// bisect, because an offset that is out of order may be anywhere and must not change which rows the other requests
// have. A block's rows ascend, and the rows of requests do, so each search begins where the last one ended.
__device__ __forceinline__ int64_t request_of_row(const VerifyArrays& verify, int64_t row, RequestScan* scan,
                                                  int lane) {
#pragma unroll 1
  while (scan->first < verify.requests && scan->reached <= row) {
    const int64_t first = scan->first, reached_before = scan->reached;  // the `reached` of rows_between
    const int64_t request = first + lane;
    const bool there = request < verify.requests;
    const int64_t begin = there ? verify.offsets[request] : 0, end = there ? verify.offsets[request + 1] : 0;
    const int64_t up_to = max_up_to_lane(end <= verify.rows ? max(end, reached_before) : reached_before, lane);
    int64_t reached = __shfl_up_sync(kAllLanes, up_to, 1);
    if (lane == 0) reached = reached_before;
    const RequestRows rows = rows_between(begin, end, verify.rows, &reached);
    const unsigned holding = __ballot_sync(kAllLanes, there && rows.begin <= row && row < rows.begin + rows.count);
    if (holding != 0) return first + __ffs(holding) - 1;
    const int64_t reached_after = __shfl_sync(kAllLanes, up_to, kWarp - 1);
    if (reached_after > row) break;  // the requests that follow begin later
    *scan = {first + kWarp, reached_after};
  }
  return -1;
}

// Warp 0: writes the row's task to state.task, and its epsilon and draft to the state. `is_first` says that it is the
// block's first row.
template <int kWarps>
__device__ __forceinline__ void find_task(const KernelArgs& args, int64_t row, bool is_first, BlockState<kWarps>& state,
                                          int lane) {
  const VerifyArrays& verify = args.verify;
  RequestScan scan;
  if (lane == 0 && !is_first) {
    const volatile RequestScan& last = state.request_scan;  // volatile, so that no other lane reads it
    scan = {last.first, last.reached};
  }
  scan = {__shfl_sync(kAllLanes, scan.first, 0), __shfl_sync(kAllLanes, scan.reached, 0)};
  const int64_t request = request_of_row(verify, row, &scan, lane);
  if (lane != 0) return;
  state.request_scan = scan;
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
