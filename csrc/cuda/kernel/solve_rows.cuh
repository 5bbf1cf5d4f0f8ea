// Defines the kernel of solve, sample, blend and verify. For each row of logits it finds
// max { beta in [0, 1] : KL(mu_beta || pi_S) <= epsilon }, then draws a token from mu, writes log mu over the
// vocabulary (arXiv 2605.31159), or decides whether a draft is accepted as a token of mu. Outputs that are null are
// skipped.
//
// The blocks of one cluster (or one block) solve a row. Each block
//   1. copies its chunks of both models into shared memory once, finds their extremes on the way (ResidentSlice), and
//      prefetches its chunks of the row that it solves next;
//   2. sweeps them at beta = 0 and 1 in a frame of its own maxima and sends ten sums to every block of the row, so that
//      all blocks have the same numbers and reach the same decision (search.cuh);
//   3. sweeps them again at the beta that the solver asks for, until the solver has an answer: usually once;
//   4. writes its outputs. The block that holds the token draws it (token_draw.cuh). A rejected draft needs one more
//      sweep before that, of max(mu - pi_S, 0).
// Each row reads 2 V sizeof(T) bytes once, and writes 4 V bytes for log mu. A row that does not fit on chip is a
// StreamedRow, which is read again in every sweep.
//
// Clusters are persistent: each one solves every row that is a multiple of the number of clusters after its first. The
// grid is therefore as large as the device can run at once, whatever N is.
//
// The rows of a request of verify are judged at the same time, each as if all drafts before it had been accepted, and
// assemble_requests.cu keeps the verdicts up to the first rejection. Eight rows then take the time of one, instead of
// eight times as long. The price is work on rows after a rejection: 7 % of all rows with four drafts that are each
// accepted with probability 0.95.
#pragma once

#include "../kernels.h"
#include "../launch/launch_table.h"
#include "double_row.cuh"
#include "outputs.cuh"
#include "row_task.cuh"
#include "sweep.cuh"
#include "token_draw.cuh"

namespace trb::cuda {

// All threads: the block's extremes, from those that its warps have kept.
template <int kWarps>
__device__ __forceinline__ Extremes extremes_of_block(const BlockState<kWarps>& state, int lane) {
  const int32_t* of_warp = state.extremes[lane < kWarps ? lane : 0];
  return {
      from_ordered(__reduce_max_sync(kAllLanes, of_warp[0])), from_ordered(__reduce_max_sync(kAllLanes, of_warp[1])),
      from_ordered(__reduce_min_sync(kAllLanes, of_warp[2])), from_ordered(__reduce_max_sync(kAllLanes, of_warp[3])),
      from_ordered(__reduce_min_sync(kAllLanes, of_warp[4]))};
}

// All lanes of a warp: writes the warp's extremes to the block's state.
template <int kWarps>
__device__ __forceinline__ void keep_extremes(const Extremes& own, BlockState<kWarps>& state, int warp, int lane) {
  const int32_t found[5] = {
      __reduce_max_sync(kAllLanes, ordered(own.max_student)), __reduce_max_sync(kAllLanes, ordered(own.max_teacher)),
      __reduce_min_sync(kAllLanes, ordered(own.lowest)), __reduce_max_sync(kAllLanes, ordered(own.high)),
      __reduce_min_sync(kAllLanes, ordered(own.low))};
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < 5; ++k) state.extremes[warp][k] = found[k];
  }
}

// Adds sum `own` over the block's warps, in a fixed tree, and returns it as a word.
template <int kWarps, int kSums>
__device__ __forceinline__ uint64_t word_of_sum(const float (&of_warp)[kWarps][kSums], int own) {
  double part[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; ++w) part[w] = of_warp[w][min(own, kSums - 1)];
#pragma unroll
  for (int apart = 1; apart < kWarps; apart *= 2) {
#pragma unroll
    for (int w = 0; w < kWarps; w += 2 * apart) part[w] += part[w + apart];
  }
  return static_cast<uint64_t>(__double_as_longlong(part[0]));
}

// All threads of a block: sweeps both ends of [0, 1] in a frame of the block's own maxima, sends the sums to every
// block of the row, and decides what follows.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void sweep_ends(const KernelArgs& args, int64_t row, const Source& source, Chunks chunks,
                                           const Extremes& extremes, bool masked, const Cluster& cluster,
                                           BlockState<kWarps>& state, int exchange, int warp, int lane) {
  constexpr int kSums = EndsSweep::kSums, kRounds = (kSums + 3 + kGroups - 1) / kGroups;
  const int slot = exchange & 1;
  // 1. The frame. A slice without weight adds nothing in any frame, but its frame must be finite.
  const float scale = state.temperature.scale;
  const bool in_student = extremes.max_student * scale > kNoWeight,
             in_teacher = extremes.max_teacher * scale > kNoWeight;
  const EndsSweep::Frame frame{scale, in_student ? ceilf(extremes.max_student * scale) : 0.0f,
                               in_teacher ? ceilf(extremes.max_teacher * scale) : 0.0f};
  if (threadIdx.x == 0) {
    constexpr float kMost = -0.5f * kNoShift;
    const auto bounded = [](float shift) { return static_cast<int32_t>(fminf(fmaxf(shift, -kMost), kMost)); };
    state.slice = {in_student ? bounded(frame.shift_student) : kNoShift,
                   in_teacher ? bounded(frame.shift_teacher) : kNoShift,
                   ordered(extremes.max_student),
                   ordered(extremes.max_teacher),
                   ordered(extremes.high),
                   ordered(extremes.low)};
    state.shift_of_block[0] = frame.shift_student;
    state.shift_of_block[1] = frame.shift_teacher;
    cluster.expect(kSums + 3, &state.arrived[slot]);
  }
  // 2. The warps' sums and, for a masked row, the range of b - a.
  RangeOfD range;
  sweep_warp<EndsSweep, T>(source, chunks, args.vocab, masked, lane, frame, state.ends[warp], &range);
  if (masked) {
    range.high = max_over_lanes(range.high);
    range.low = min_over_lanes(range.low);
    if (lane == 0) state.range[warp] = range;
  }
  __syncthreads();
  if (warp == 0) {
    // 3. The record for every block of the row: the words of `slice` follow the sums.
    const uint64_t* const of_slice = reinterpret_cast<const uint64_t*>(&state.slice);
    const uint64_t sum = word_of_sum(state.ends, lane);
    uint64_t word = select(lane < kSums, sum, of_slice[min(max(lane - kSums, 0), 2)]);
    if (masked) {
      const RangeOfD of_warp = state.range[lane < kWarps ? lane : 0];
      const uint32_t high = ordered(max_over_lanes(of_warp.high)), low = ordered(min_over_lanes(of_warp.low));
      word = select(lane == kSums + 2, uint64_t{low} << 32 | high, word);
    }
    uint64_t words[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i) words[i] = __shfl_sync(kAllLanes, word, lane / kLargestCluster + kGroups * i);
    cluster.send(&state.record[slot][cluster.rank], kSums + 3, words, &state.arrived[slot], lane);
    cluster.wait(&state.arrived[slot], exchange >> 1 & 1);
    decide_first<T>(args, state, row, cluster, slot, lane);
  }
  __syncthreads();
}

// All threads of a block: sweeps as the plan says, sends the sums, and decides what follows.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void sweep_exactly(const KernelArgs& args, int64_t row, const Source& source, Chunks chunks,
                                              const ExactFrame& frame, Form form, bool masked, const Cluster& cluster,
                                              BlockState<kWarps>& state, int exchange, int warp, int lane) {
  const int slot = exchange & 1;
  const bool stable = form == Form::kStable;
  if (stable) {
    sweep_warp<StableSweep, T>(source, chunks, args.vocab, masked, lane, frame, state.exact[warp], nullptr);
  } else {
    sweep_warp<DirectSweep, T>(source, chunks, args.vocab, masked, lane, frame, state.exact[warp], nullptr);
  }
  __syncthreads();
  if (warp == 0) {
    const int own = lane / kLargestCluster;
    uint64_t words[2] = {word_of_sum(state.exact, own), 0};
    if (stable) words[1] = word_of_sum(state.exact, own + kGroups);
    cluster.send(&state.record[slot][cluster.rank], words_of(form), words, &state.arrived[slot], lane);
    cluster.wait(&state.arrived[slot], exchange >> 1 & 1);
    decide<T>(args, state, row, cluster, slot, lane);
  }
  __syncthreads();
}

// All threads of a block: sweeps the residual of a rejected draft and sends its sums. The sums of the search are kept.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void sweep_residual(const KernelArgs& args, const Source& source, Chunks chunks,
                                               const Cluster& cluster, BlockState<kWarps>& state, int parity, int warp,
                                               int lane) {
  const ExactFrame frame = state.residual_frame;
  if (threadIdx.x == 0) cluster.expect(1, &state.arrived[2]);
  sweep_warp<ResidualSweep, T>(source, chunks, args.vocab, true, lane, frame, state.residual[warp], nullptr);
  __syncthreads();
  if (warp == 0) {
    const uint64_t words[1] = {word_of_sum(state.residual, 0)};
    cluster.send(&state.residual_of_rank[cluster.rank], 1, words, &state.arrived[2], lane);
    cluster.wait(&state.arrived[2], parity);
    choose_residual(state, cluster.ranks, lane);
  }
  __syncthreads();
}

// All threads of all blocks of the row: solves it and writes its outputs.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void solve_row(const KernelArgs& args, int64_t row, const RowPair<T>& pair,
                                          const Source& source, const Cluster& cluster, Chunks block_chunks,
                                          BlockState<kWarps>& state, int warp, int lane, Exchanges* exchanges) {
  // 1. Reads the row's arguments and its logits, in this order, so that the latency of the arguments hides behind that
  // of the logits. Then prefetches the next row.
  const Chunks chunks = block_chunks.part(warp, kWarps);
  if (threadIdx.x == 0) read_row_arguments(args, row, pair, state);
  __syncwarp();  // so that lane 0 reads the row together with the other lanes
  keep_extremes(scan(pair, source, chunks, lane), state, warp, lane);
  __syncthreads();
  const Extremes extremes = extremes_of_block(state, lane);
  const float scale = state.temperature.scale;
  const bool masked =
      !(extremes.lowest * scale > kNoWeight && extremes.low * scale > kNoWeight && extremes.high * scale < -kNoWeight);
  const int64_t next = row + gridDim.x / cluster.ranks;
  if (Source::kResident && args.prefetch && next < args.rows) prefetch_row<T>(args, next, chunks, lane);

  // 2. Sweeps both ends, and then each beta that the solver asks for. The slots of the records alternate.
  int exchange = exchanges->records++;
  sweep_ends<T>(args, row, source, chunks, extremes, masked, cluster, state, exchange, warp, lane);
  Action action;
  for (;;) {
    const Plan& plan = state.plan[(exchange & 1) ^ 1];
    const ExactFrame frame = plan.frame;
    const Form form = plan.form;
    action = plan.action;
    if (action != Action::kSweep) break;
    exchange = exchanges->records++;
    sweep_exactly<T>(args, row, source, chunks, frame, form, masked, cluster, state, exchange, warp, lane);
  }
  if (action == Action::kDone) return;

  // 3. Starts over in double precision if the range of float32 exponents is too small.
  if (action == Action::kDouble) {
    if (cluster.rank == 0) solve_double_row(args, row, pair, state, warp, lane);
    return;
  }
  // 4. Writes log mu.
  if (args.log_probs != nullptr) {
    float* const out = args.log_probs + row * args.vocab;
    if (state.token_from == TokenFrom::kFault) {
      write_nan_log_probs<T>(chunks, lane, args.vocab, out);
    } else {
      write_log_probs<T>(source, chunks, lane, args.vocab, state.answer, out);
    }
  }
  // 5. Draws the token, after a rejected draft from max(mu - pi_S, 0), or from mu if rounding leaves no mass there.
  if (state.token_from == TokenFrom::kResidual) {
    sweep_residual<T>(args, source, chunks, cluster, state, exchanges->residuals++ & 1, warp, lane);
  }
  if (is_drawn(state.token_from)) draw<T>(args, row, source, block_chunks, cluster, state, exchange & 1, warp, lane);
}

// Hides from the compiler that `value` is the same in every row. It would otherwise compute every address that a row
// needs before the first row, and spill them.
__device__ __forceinline__ unsigned recomputed_in_each_row(unsigned value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The body of both kernels: solves every row of this block's cluster.
template <typename T, bool kResident, int kThreads>
__device__ __forceinline__ void solve_rows(const KernelArgs& args) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(!kResident || sizeof(BlockState<kWarps>) <= kBlockStateBytes, "the launch table leaves it that much");
  static_assert(kVectorsPerChunk == kWarp && kBytesPerVector == kVectorBytes, "the launch table counts in chunks");
  // 1. The shared memory. The state is declared as bytes, because shared memory has no initializers.
  extern __shared__ uint4 slices[];
  __shared__ alignas(16) unsigned char storage[sizeof(BlockState<kWarps>)];
  BlockState<kWarps>& state = reinterpret_cast<BlockState<kWarps>&>(storage);
  // 2. No block may send to a peer before the peer has started.
  const Cluster cluster;
  Exchanges exchanges;
  if (threadIdx.x >= cluster.ranks && threadIdx.x < kLargestCluster) {
    clear(state.record[0][threadIdx.x]);
    clear(state.record[1][threadIdx.x]);
  }
  cluster.start(state.arrived);
  // 3. The rows of this cluster.
#pragma unroll 1
  for (int64_t row = blockIdx.x / cluster.ranks; row < args.rows; row += gridDim.x / cluster.ranks) {
    const unsigned thread = recomputed_in_each_row(threadIdx.x);
    const int lane = thread % kWarp, warp = thread / kWarp;
    const Chunks block_chunks = chunks_of_row<T>(args.vocab).part(cluster.rank, cluster.ranks);
    RowTask task{row, row, 1.0f, 1};
    if (args.verifies()) {
      if (warp == 0) find_task(args, row, row < gridDim.x / cluster.ranks, state, lane);
      __syncthreads();
      task = state.task;
    }
    if (task.judged == 0) {
      if (cluster.rank == 0 && threadIdx.x == 0) write_fault(args, row, 0);
    } else {
      const RowPair<T> pair(args, task.student_row, task.teacher_row, task.temperature);
      if constexpr (kResident) {
        const ResidentSlice<T> source(slices, slices + args.slice_vectors, block_chunks.begin);
        solve_row(args, row, pair, source, cluster, block_chunks, state, warp, lane, &exchanges);
      } else {
        solve_row(args, row, pair, StreamedRow<T>(pair), cluster, block_chunks, state, warp, lane, &exchanges);
      }
    }
    __syncthreads();  // before the next row overwrites the slice and the state
  }
}

template <typename T>
__global__ void __launch_bounds__(kResidentThreads, 2) resident_rows(const __grid_constant__ KernelArgs args) {
  solve_rows<T, true, kResidentThreads>(args);
}

template <typename T>
__global__ void __launch_bounds__(kStreamedThreads, 1) streamed_rows(const __grid_constant__ KernelArgs args) {
  solve_rows<T, false, kStreamedThreads>(args);
}

}  // namespace trb::cuda
