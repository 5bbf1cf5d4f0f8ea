// solve, sample and blend for rows of logits: max { beta in [0, 1] : KL(mu_beta || pi_S) <= epsilon } of each row, then
// a token of mu or log mu over the vocabulary (arXiv 2605.31159). One kernel for all three; null outputs are skipped.
//
// A row is solved by the blocks of one cluster (or by one block). Each
//   1. copies its chunks of both models into shared memory, once, taking their extremes on the way (ResidentSlice), and
//      asks the second-level cache for its chunks of the row it solves next;
//   2. sweeps them at beta = 0 and 1 in a frame of its own maxima, publishes ten sums, and after one cluster barrier
//   reads
//      those of its peers: all blocks then hold the same numbers and take the same decision (decision.cuh);
//   3. sweeps them again at the beta the solver asks for, until it has an answer: usually once;
//   4. writes its outputs. The token is drawn by the block that holds it (draw.cuh).
// Bytes: 2 V sizeof(T) read once, 4 V written for log mu. StreamedRow reads the row again in each step instead, where
// it does not fit on chip.
//
// Clusters are persistent: they take rows `clusters` apart, so the grid is what fits the device, not what N asks for.
#pragma once

#include "draw.cuh"
#include "launch_table.h"
#include "log_probs.cuh"
#include "row_kernels.h"
#include "sweep.cuh"
#include "wide_row.cuh"

namespace trb::cuda {

constexpr float kLowestPlain = -1e30f;  // log2 units: below, an exponent or a difference of two could overflow

// Every thread: the block's extremes, from those that its warps have written.
template <int kWarps>
__device__ __forceinline__ Extremes extremes_of_block(const BlockState<kWarps>& state, int lane) {
  const int32_t* of_warp = state.extremes[lane < kWarps ? lane : 0];
  return {
      from_ordered(__reduce_max_sync(kAllLanes, of_warp[0])), from_ordered(__reduce_max_sync(kAllLanes, of_warp[1])),
      from_ordered(__reduce_min_sync(kAllLanes, of_warp[2])), from_ordered(__reduce_max_sync(kAllLanes, of_warp[3])),
      from_ordered(__reduce_min_sync(kAllLanes, of_warp[4]))};
}

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

// Warp 0: `count` sums of the block's warps, in warp order, for the peers.
template <int kWarps, int kSums>
__device__ __forceinline__ void publish(const float (&of_warp)[kWarps][kSums], int count, Record* record, int lane) {
  if (lane < count) {
    double sum = 0.0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += of_warp[w][lane];
    record->sums[lane] = sum;
  }
}

// All threads of a block: its sums at both ends of [0, 1], in a frame of its own maxima, left in `record`.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void sweep_ends(const KernelArgs& args, const Source& source, Chunks chunks,
                                           const Extremes& extremes, bool masked, BlockState<kWarps>& state,
                                           Record* record, int warp, int lane) {
  // A slice without a finite logit adds nothing whatever its frame, which must be finite all the same.
  const bool in_student = extremes.max_student > -INFINITY, in_teacher = extremes.max_teacher > -INFINITY;
  const EndsSweep::Frame frame{args.scale, in_student ? ceilf(extremes.max_student * args.scale) : 0.0f,
                               in_teacher ? ceilf(extremes.max_teacher * args.scale) : 0.0f};
  RangeOfD range;
  sweep_warp<EndsSweep, T>(source, chunks, args.vocab, masked, lane, frame, state.ends[warp], &range);
  range.high = max_over_lanes(range.high);
  range.low = min_over_lanes(range.low);
  if (lane == 0) state.range[warp] = range;
  __syncthreads();
  if (warp != 0) return;
  publish(state.ends, EndsSweep::kSums, record, lane);
  const RangeOfD of_warp = state.range[lane < kWarps ? lane : 0];
  const float high = max_over_lanes(of_warp.high), low = min_over_lanes(of_warp.low);
  if (lane == 0) {
    record->shift_student = in_student ? frame.shift_student : -INFINITY;
    record->shift_teacher = in_teacher ? frame.shift_teacher : -INFINITY;
    record->max_student = extremes.max_student;
    record->max_teacher = extremes.max_teacher;
    record->high = masked ? high : extremes.high;
    record->low = masked ? low : extremes.low;
  }
}

// The same at the beta and in the frame that the solver has asked for.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void sweep_exactly(const KernelArgs& args, const Source& source, Chunks chunks, bool masked,
                                              BlockState<kWarps>& state, Record* record, int warp, int lane) {
  const ExactFrame frame = state.frame;
  const bool stable = state.form == Form::kStable;
  if (stable) {
    sweep_warp<StableSweep, T>(source, chunks, args.vocab, masked, lane, frame, state.exact[warp], nullptr);
  } else {
    sweep_warp<DirectSweep, T>(source, chunks, args.vocab, masked, lane, frame, state.exact[warp], nullptr);
  }
  __syncthreads();
  if (warp == 0) publish(state.exact, stable ? StableSweep::kSums : DirectSweep::kSums, record, lane);
}

template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void solve_row(const KernelArgs& args, int64_t row, const RowPair<T>& pair,
                                          const Source& source, const Cluster& cluster, Chunks block_chunks,
                                          BlockState<kWarps>& state, int warp, int lane, int* exchange) {
  const Chunks chunks = block_chunks.part(warp, kWarps);
  const double epsilon = args.epsilon_per_row ? args.epsilon_per_row[row * args.epsilon_stride] : args.epsilon;

  keep_extremes(scan(pair, source, chunks, lane), state, warp, lane);
  __syncthreads();
  const Extremes extremes = extremes_of_block(state, lane);
  const bool masked = !(extremes.lowest * args.scale > kLowestPlain && extremes.low * args.scale > kLowestPlain &&
                        extremes.high * args.scale < -kLowestPlain);
  const int64_t next = row + gridDim.x / cluster.ranks;
  if (next < args.rows) prefetch(RowPair<T>(args, next), chunks, lane);

  bool first = true;
  do {
    const int slot = *exchange & 1;
    if (first) {
      sweep_ends<T>(args, source, chunks, extremes, masked, state, &state.record[slot], warp, lane);
    } else {
      sweep_exactly<T>(args, source, chunks, masked, state, &state.record[slot], warp, lane);
    }
    cluster.sync();
    if (warp == 0) {
      if (first) {
        gather_ends(state, cluster, slot, lane);
      } else {
        gather_exact(state, cluster, slot, lane);
      }
      if (lane == 0) decide(state, first, args.scale, epsilon);
    }
    first = false;
    ++*exchange;
    __syncthreads();
  } while (state.action == Action::kSweep);

  if (state.action == Action::kWide) {
    if (cluster.rank == 0) solve_wide_row<T>(args, row, epsilon, pair, state, warp, lane);
    return;
  }
  const Answer& answer = state.answer;
  const double uniform = args.token != nullptr ? args.uniform[row * args.uniform_stride] : 0.0;
  const bool fault = answer.status == Status::kFault || !(uniform >= 0.0 && uniform < 1.0);
  if (cluster.rank == 0 && threadIdx.x == 0) {
    if (fault) {
      write_fault(args, row, answer.sweeps);
    } else {
      write_answer(args, row, answer);
    }
  }
  if (args.log_probs != nullptr) {
    float* const out = args.log_probs + row * args.vocab;
    if (fault) {
      write_nan_log_probs<T>(chunks, lane, args.vocab, out);
    } else {
      write_log_probs<T>(source, chunks, lane, args.vocab, answer, out);
    }
  }
  if (args.token != nullptr && !fault) {
    draw<T>(args, row, uniform, source, block_chunks, cluster, state, warp, lane);
  }
}

template <typename T, bool kResident, int kThreads>
__device__ __forceinline__ void solve_rows(const KernelArgs& args) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(!kResident || sizeof(BlockState<kWarps>) <= kBlockStateBytes, "the launch table leaves it that much");
  static_assert(kVectorsPerChunk == kWarp && kBytesPerVector == kVectorBytes, "the launch table counts in chunks");
  extern __shared__ uint4 slices[];
  // As bytes: shared memory takes no initialisers.
  __shared__ alignas(16) unsigned char storage[sizeof(BlockState<kWarps>)];
  BlockState<kWarps>& state = reinterpret_cast<BlockState<kWarps>&>(storage);
  const Cluster cluster;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Chunks block_chunks = chunks_of_row<T>(args.vocab).part(cluster.rank, cluster.ranks);
  int exchange = 0;
#pragma unroll 1
  for (int64_t row = blockIdx.x / cluster.ranks; row < args.rows; row += gridDim.x / cluster.ranks) {
    const RowPair<T> pair(args, row);
    if constexpr (kResident) {
      const ResidentSlice<T> source(slices, slices + args.slice_vectors, block_chunks.begin);
      solve_row(args, row, pair, source, cluster, block_chunks, state, warp, lane, &exchange);
    } else {
      solve_row(args, row, pair, StreamedRow<T>(pair), cluster, block_chunks, state, warp, lane, &exchange);
    }
    __syncthreads();  // the slice and the state of the row are done with
  }
  cluster.sync();  // a peer may still read this block's last record
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
