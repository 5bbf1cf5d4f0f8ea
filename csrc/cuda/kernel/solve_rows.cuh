// Defines the kernel of solve, sample, blend and verify. For each row of logits it finds
// max { beta in [0, 1] : KL(mu_beta || pi_S) <= epsilon }, then draws a token from mu, writes log mu over the
// vocabulary (arXiv 2605.31159), or decides whether a draft is accepted as a token of mu. Outputs that are null are
// skipped.
//
// The blocks of one cluster (or one block) solve a row. Each block
//   1. copies its chunks of both models into shared memory once, finds their extremes on the way (ResidentSlice), and
//      prefetches its chunks of the row that it solves next;
//   2. sweeps them at beta = 0 and 1, each section in a frame of its own maxima, and sends ten sums of each section to
//      every block of the row, so that all blocks have the same numbers and reach the same decision (search.cuh);
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
#include "sweep/sweep.cuh"
#include "token_draw.cuh"

namespace trb::cuda {

// The extremes of one warp's chunks.
struct WarpExtremes {
  int32_t max_student, max_teacher, high, low;  // ordered
  float lowest;

  // All lanes of the warp.
  __device__ __forceinline__ explicit WarpExtremes(const Extremes& own)
      : max_student(__reduce_max_sync(kAllLanes, ordered(own.max_student))),
        max_teacher(__reduce_max_sync(kAllLanes, ordered(own.max_teacher))),
        high(__reduce_max_sync(kAllLanes, ordered(own.high))),
        low(__reduce_min_sync(kAllLanes, ordered(own.low))),
        lowest(min_over_lanes(own.lowest)) {}

  // Whether some logit is -inf, or far below the others.
  __device__ __forceinline__ bool masked(float scale) const {
    return !((lowest * scale > kNoWeight) & (from_ordered(low) * scale > kNoWeight) &
             (from_ordered(high) * scale < -kNoWeight));
  }
};

// One lane of a warp: adds a range of b - a to that of the section.
__device__ __forceinline__ void add_range(SliceFrame& section, int32_t high, int32_t low) {
  atomicMax(&section.high, high);
  atomicMin(&section.low, low);
}

// Adds sum `own` over the strips of a section, in a fixed tree, and returns it as a word.
template <int kSums>
__device__ __forceinline__ uint64_t word_of_sum(const float (&of_strip)[kStripsPerBlock][kSums], int section, int own) {
  double part[kStripsPerSection];
#pragma unroll
  for (int s = 0; s < kStripsPerSection; ++s) {
    part[s] = of_strip[section * kStripsPerSection + s][min(own, kSums - 1)];
  }
#pragma unroll
  for (int apart = 1; apart < kStripsPerSection; apart *= 2) {
#pragma unroll
    for (int s = 0; s < kStripsPerSection; s += 2 * apart) part[s] += part[s + apart];
  }
  return static_cast<uint64_t>(__double_as_longlong(part[0]));
}

// The section of this block and the word of its record that a lane of warp 0 sends.
struct Sender {
  static constexpr int kHalf = kWarp / kSectionsPerBlock;
  int section, word;
  bool there;  // whether the block has the section

  __device__ __forceinline__ Sender(const Cluster& cluster, int lane)
      : section(min(lane / kHalf, cluster.sections - 1)), word(lane % kHalf), there(lane / kHalf < cluster.sections) {}
};

// All threads of a block: sweeps both ends of [0, 1] in a frame of each section's own maxima, sends the sums to every
// block of the row, and decides what follows.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void sweep_ends(const KernelArgs& args, int64_t row, const Source& source,
                                           const WarpShare& share, const WarpExtremes& extremes, const Cluster& cluster,
                                           BlockState<kWarps>& state, int exchange, int turn, int warp, int lane) {
  constexpr int kSums = EndsSweep::kSums;
  const int slot = exchange & 1;
  // 1. The strips' sums, and the range of b - a, which a masked warp finds meanwhile.
  SliceFrame* const sections = state.section[turn];
  const EndsSweep::Frame frame = ends_frame(sections[share.section], state.temperature.scale);
  const bool masked = extremes.masked(frame.scale);
  if (threadIdx.x == 0) cluster.expect(kRecordWords, &state.arrived[slot]);
  RangeOfD range;
  if (!masked & (lane == 0)) add_range(sections[share.section], extremes.high, extremes.low);
#pragma unroll 1
  for (int i = 0; i < share.strips; ++i) {
    sweep_strip<EndsSweep, T>(source, state.chunks_of(share.first + i, 1), args.vocab, masked, lane, frame,
                              state.ends[share.first + i], &range);
  }
  if (masked) {
    const int32_t high = __reduce_max_sync(kAllLanes, ordered(range.high)),
                  low = __reduce_min_sync(kAllLanes, ordered(range.low));
    if (lane == 0) add_range(sections[share.section], high, low);
  }
  __syncthreads();
  if (warp == 0) {
    // 2. Half of the lanes make the record of each section: the words of its frame follow the sums.
    const Sender own(cluster, lane);
    const SliceFrame& found = sections[own.section];
    const EndsSweep::Frame of_lane = ends_frame(found, frame.scale);
    constexpr float kMost = -0.5f * kNoShift;
    const auto shift = [&](int32_t largest, float shift) {
      const int32_t bounded = static_cast<int32_t>(fminf(fmaxf(shift, -kMost), kMost));
      return select(from_ordered(largest) * frame.scale > kNoWeight, bounded, kNoShift);
    };
    const auto pair = [](int32_t low, int32_t high) {
      return static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low);
    };
    const uint64_t shifts = pair(shift(found.max_student, of_lane.shift_student),
                                 shift(found.max_teacher, of_lane.shift_teacher)),
                   maxima = pair(found.max_student, found.max_teacher), range_of_d = pair(found.high, found.low);
    const uint64_t sum = word_of_sum(state.ends, own.section, own.word);
    const uint64_t word = select(own.word < kSums, sum,
                                 select(own.word == kSums, shifts, select(own.word == kSums + 1, maxima, range_of_d)));
    cluster.send(state.word_of_record(slot, cluster.first_section(), lane), word, own.there & (own.word < kRecordWords),
                 &state.arrived[slot]);
    cluster.wait(&state.arrived[slot], exchange >> 1);
    decide_first<T>(args, state, row, cluster, slot, lane);
  }
  __syncthreads();
}

// All threads of a block: sweeps as the plan says, sends the sums, and decides what follows.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void sweep_exactly(const KernelArgs& args, int64_t row, const Source& source,
                                              const WarpShare& share, const ExactFrame& frame, Form form, bool masked,
                                              const Cluster& cluster, BlockState<kWarps>& state, int exchange, int warp,
                                              int lane) {
  const int slot = exchange & 1;
  const bool stable = form == Form::kStable;
#pragma unroll 1
  for (int i = 0; i < share.strips; ++i) {
    const Chunks chunks = state.chunks_of(share.first + i, 1);
    float* const out = state.exact[share.first + i];
    if (stable) {
      sweep_strip<StableSweep, T>(source, chunks, args.vocab, masked, lane, frame, out, nullptr);
    } else {
      sweep_strip<DirectSweep, T>(source, chunks, args.vocab, masked, lane, frame, out, nullptr);
    }
  }
  __syncthreads();
  if (warp == 0) {
    const Sender own(cluster, lane);
    cluster.send(state.word_of_record(slot, cluster.first_section(), lane),
                 word_of_sum(state.exact, own.section, min(own.word, words_of(form) - 1)),
                 own.there & (own.word < words_of(form)), &state.arrived[slot]);
    decide<T>(args, state, row, cluster, exchange, lane);
  }
  __syncthreads();
}

// All threads of a block: sweeps the residual of a rejected draft and sends its sums. The sums of the search are kept.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void sweep_residual(const KernelArgs& args, const Source& source, const WarpShare& share,
                                               const Cluster& cluster, BlockState<kWarps>& state, int parity, int warp,
                                               int lane) {
  const ExactFrame frame = state.residual_frame;
  if (threadIdx.x == 0) cluster.expect(1, &state.arrived[2]);
#pragma unroll 1
  for (int i = 0; i < share.strips; ++i) {
    sweep_strip<ResidualSweep, T>(source, state.chunks_of(share.first + i, 1), args.vocab, true, lane, frame,
                                  state.residual[share.first + i], nullptr);
  }
  __syncthreads();
  if (warp == 0) {
    const Sender own(cluster, lane);
    cluster.send(&state.residual_of_section[cluster.first_section() + own.section],
                 word_of_sum(state.residual, own.section, 0), own.there & (own.word == 0), &state.arrived[2]);
    cluster.wait(&state.arrived[2], parity);
    choose_residual(state, cluster.all_sections(), lane);
  }
  __syncthreads();
}

// All threads of all blocks of the row: solves it and writes its outputs.
template <typename T, int kWarps, typename Source>
__device__ __forceinline__ void solve_row(const KernelArgs& args, int64_t row, const RowPair<T>& pair,
                                          const Source& source, const Cluster& cluster, const WarpShare& share,
                                          BlockState<kWarps>& state, int warp, int lane, Exchanges* exchanges) {
  // 1. Reads the row's arguments and its logits, in this order, so that the latency of the arguments hides behind that
  // of the logits. Then prefetches the next row.
  const Chunks chunks = state.chunks_of(share.first, share.strips);
  const int turn = exchanges->next_row();
  if (threadIdx.x == 0) read_row_arguments(args, row, pair, state);
  __syncwarp();  // so that lane 0 reads the row together with the other lanes
  const WarpExtremes extremes(scan(pair, source, chunks, lane));
  if (lane == 0) {
    atomicMax(&state.section[turn][share.section].max_student, extremes.max_student);
    atomicMax(&state.section[turn][share.section].max_teacher, extremes.max_teacher);
  }
  __syncthreads();
  const bool masked = extremes.masked(state.temperature.scale);
  if ((warp == 0) & (lane < kSectionsPerBlock)) state.section[turn ^ 1][lane] = empty_frame();  // for the next row
  const int64_t next = row + cluster.count();
  if (Source::kResident && args.prefetch && next < args.rows) {
#if __CUDA_ARCH__ >= 900
    if (warp == kWarps - 1) prefetch_row<T>(args, next, {state.strip[0], state.strip[kStripsPerBlock]}, lane);
#else
    prefetch_row<T>(args, next, chunks, lane);
#endif
  }

  // 2. Sweeps both ends, and then each beta that the solver asks for. The slots of the records alternate.
  int exchange = exchanges->next_record();
  sweep_ends<T>(args, row, source, share, extremes, cluster, state, exchange, turn, warp, lane);
  Action action;
  for (;;) {
    const Plan& plan = state.plan[(exchange & 1) ^ 1];
    const ExactFrame frame = plan.frame;
    const Form form = plan.form;
    action = plan.action;
    if (action != Action::kSweep) break;
    exchange = exchanges->next_record();
    sweep_exactly<T>(args, row, source, share, frame, form, masked, cluster, state, exchange, warp, lane);
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
    sweep_residual<T>(args, source, share, cluster, state, exchanges->next_residual(), warp, lane);
  }
  if (is_drawn(state.token_from)) {
    draw<T>(args, row, source, cluster, state, exchange & 1, exchanges->row(), warp, lane);
  }
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
  static_assert(kWarps <= kStripsPerBlock, "each warp has a strip");
  static_assert(!kResident || sizeof(BlockState<kWarps>) <= kBlockStateBytes, "the launch table leaves it that much");
  static_assert(kVectorsPerChunk == kWarp && kBytesPerVector == kVectorBytes, "the launch table counts in chunks");
  // 1. The shared memory. The state is declared as bytes, because shared memory has no initializers.
  extern __shared__ uint4 slices[];
  __shared__ alignas(16) unsigned char storage[sizeof(BlockState<kWarps>)];
  BlockState<kWarps>& state = reinterpret_cast<BlockState<kWarps>&>(storage);
  // 2. No block may send to a peer before the peer has started.
  const Cluster cluster(args.sections);
  Exchanges exchanges;
  if (threadIdx.x >= cluster.all_sections() && threadIdx.x < kMostSections) {
    clear(state.record[0][threadIdx.x]);
    clear(state.record[1][threadIdx.x]);
  }
  if (threadIdx.x < kSectionsPerBlock) state.section[0][threadIdx.x] = empty_frame();
  if (threadIdx.x <= kStripsPerBlock) {
    const int strips = cluster.sections * kStripsPerSection, strip = min(static_cast<int>(threadIdx.x), strips);
    state.strip[threadIdx.x] = args.strips.begin(cluster.rank * strips + strip);
  }
  __syncthreads();
  cluster.start(state.arrived);
  // 3. The rows of this cluster.
#pragma unroll 1
  for (int64_t row = cluster.index(); row < args.rows; row += cluster.count()) {
    const unsigned thread = recomputed_in_each_row(threadIdx.x);
    const int lane = thread % kWarp, warp = thread / kWarp;
    RowTask task{row, row, 1.0f, 1};
    if (args.verifies()) {
      if (warp == 0) find_task(args, row, row < cluster.count(), state, lane);
      __syncthreads();
      task = state.task;
    }
    if (task.judged == 0) {
      if (cluster.rank == 0 && threadIdx.x == 0) write_fault(args, row, 0);
    } else {
      const RowPair<T> pair(args, task.student_row, task.teacher_row, task.temperature);
      const int strips = cluster.sections * kStripsPerSection / kWarps, first = warp * strips;
      const WarpShare share{first / kStripsPerSection, first, strips};
      if constexpr (kResident) {
        const ResidentSlice<T> source(slices, args.slice_vectors, state.strip[0], lane);
        solve_row(args, row, pair, source, cluster, share, state, warp, lane, &exchanges);
      } else {
        solve_row(args, row, pair, StreamedRow<T>(pair), cluster, share, state, warp, lane, &exchanges);
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
