// One token from mu by the inverse of its cumulative distribution, in token order: the first token whose cumulative
// mass exceeds uniform times the total.
//
// Three levels: the rank, then the warp that swept the token, by the masses the last sweep left behind; then the chunks
// of that warp are read again, and its tokens share its mass exactly. Sums of weights in double: 53 bits of uniform
// reach tokens of any probability. A part of mass zero never advances the running sum, so a masked token is never
// drawn; if rounding at uniform -> 1 leaves the target unreached, the last token of positive mass stands.
#pragma once

#include "decision.cuh"

namespace trb::cuda {

__device__ __forceinline__ double sum_over_lanes(double value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// Weights of the tokens of a chunk under mu, in any one unit; `a`, `b` are raw logits.
struct FloatWeight {
  ExactFrame frame;
  float scale, shift_student, shift_teacher;
  Status status;

  template <int kWarps>
  __device__ __forceinline__ FloatWeight(const BlockState<kWarps>& state, float log2e_per_temperature)
      : frame(state.frame),
        scale(log2e_per_temperature),
        shift_student(state.shift_of_row[0]),
        shift_teacher(state.shift_of_row[1]),
        status(state.answer.status) {}

  __device__ __forceinline__ double operator()(float a, float b) const {
    const bool in_student = a > -INFINITY, in_teacher = b > -INFINITY;
    if (!in_student || (status != Status::kStudent && !in_teacher)) return 0.0;
    return status == Status::kStudent   ? ex2(fmaf(a, scale, -shift_student))
           : status == Status::kTeacher ? ex2(fmaf(b, scale, -shift_teacher))
                                        : DirectSweep::weight(a, (b - a) - frame.centre, frame);
  }
};

// A lane's tokens of a chunk and their weights.
template <typename T>
struct Weighed {
  static constexpr int kTokens = LogitVector<T>::kTokens;
  float a[kTokens], b[kTokens];
  double w[kTokens];
  double sum = 0.0;  // in token order

  template <typename Source, typename Weight>
  __device__ __forceinline__ Weighed(const Source& source, int32_t chunk, int lane, const Weight& weight) {
    uint4 student, teacher;
    source.template vectors<true>(chunk, lane, &student, &teacher);
    LogitVector<T>::unpack(student, a);
    LogitVector<T>::unpack(teacher, b);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) sum += w[i] = weight(a[i], b[i]);
  }
};

// All threads of a block: the token among `chunks` at `fraction` of their mass, left in state.drawn.
template <typename T, typename Source, typename Weight, int kWarps>
__device__ __forceinline__ void draw_from(const Source& source, Chunks chunks, double fraction, const Weight& weight,
                                          BlockState<kWarps>& state, int warp, int lane) {
  double own = 0.0;
#pragma unroll 1
  for (int32_t chunk = chunks.begin + warp; chunk < chunks.end; chunk += kWarps) {
    own += Weighed<T>(source, chunk, lane, weight).sum;
  }
  own = sum_over_lanes(own);
  if (lane == 0) state.mass[warp] = own;
  __syncthreads();
  double total = 0.0;
  for (int i = 0; i < kWarps; ++i) total += state.mass[i];
  const double target = fraction * total;
  __syncthreads();

  // Chunks in order, kWarps at a time, until the running sum passes the target.
  double before = 0.0, before_last = 0.0;
  int32_t chosen = -1, last = -1;
  for (int32_t begin = chunks.begin; begin < chunks.end && chosen < 0; begin += kWarps) {
    const int32_t chunk = begin + warp;
    const double mass = sum_over_lanes(chunk < chunks.end ? Weighed<T>(source, chunk, lane, weight).sum : 0.0);
    if (lane == 0) state.mass[warp] = mass;
    __syncthreads();
    for (int i = 0; i < kWarps && chosen < 0; ++i) {
      const double next = before + state.mass[i];
      if (next > target) {
        chosen = begin + i;
      } else {
        if (state.mass[i] > 0.0) last = begin + i;
        before_last = state.mass[i] > 0.0 ? before : before_last;
        before = next;
      }
    }
    __syncthreads();
  }
  if (warp != 0) return;
  const bool found = chosen >= 0;
  if (!found) chosen = last, before = before_last;
  const Weighed<T> tokens(source, chosen, lane, weight);
  const double sum = tokens.sum;
  double up_to = sum;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const double other = __shfl_up_sync(kAllLanes, up_to, distance);
    if (lane >= distance) up_to += other;
  }
  // The tree may round differently from the sum above it: the last lane that holds mass stands for it.
  const unsigned passing = __ballot_sync(kAllLanes, found && sum > 0.0 && before + up_to > target);
  const unsigned holding = __ballot_sync(kAllLanes, sum > 0.0);
  const int owner = passing != 0 ? __ffs(passing) - 1 : kWarp - 1 - __clz(holding);
  if (lane != owner) return;
  double running = before + (up_to - sum);
  Drawn drawn{-1, 0.0f, 0.0f};
  bool reached = false;
#pragma unroll
  for (int i = 0; i < Weighed<T>::kTokens; ++i) {
    running += tokens.w[i];
    if (tokens.w[i] > 0.0 && !reached) {
      drawn = {(static_cast<int64_t>(chosen) * kWarp + lane) * Weighed<T>::kTokens + i, tokens.a[i], tokens.b[i]};
      reached = passing != 0 && running > target;
    }
  }
  state.drawn = drawn;
}

// Thread 0: the first of `count` masses whose running sum exceeds `target`, which becomes the rest within it.
__device__ __forceinline__ int32_t choose(const double* mass, int count, double* target) {
  double before = 0.0, before_chosen = 0.0;
  int32_t chosen = -1;
  for (int i = 0; i < count; ++i) {
    if (!(mass[i] > 0.0)) continue;
    chosen = i;
    before_chosen = before;
    before += mass[i];
    if (before > *target) break;
  }
  *target -= before_chosen;
  return chosen;
}

// The mass of part of a row under the answer, from its sums of the last sweep.
template <typename Real, int kWarps>
__device__ __forceinline__ double interior_mass(const BlockState<kWarps>& state, const Real* sums) {
  const double h = state.solver.shift();
  return state.form == Form::kStable ? shifted_stable_mass(sums, h / state.solver.swept().beta)
                                     : shifted_mass(sums, h * state.answer.inverse_temperature);
}

__device__ __forceinline__ void write_draw(const KernelArgs& args, int64_t row, const Answer& answer,
                                           const Drawn& drawn) {
  const double x = drawn.student_logit * answer.inverse_temperature - answer.reference_student,
               y = drawn.teacher_logit * answer.inverse_temperature - answer.reference_teacher, beta = answer.beta;
  const double log_weight = beta == 0.0 ? x : beta == 1.0 ? y : (1.0 - beta) * x + beta * y;
  args.token[row] = drawn.token;
  args.log_prob[row] = static_cast<float>(log_weight - answer.log_norm);
  args.student_log_prob[row] = static_cast<float>(x - answer.log_student);
  args.teacher_log_prob[row] = static_cast<float>(y - answer.log_teacher);
}

__device__ __forceinline__ void write_answer(const KernelArgs& args, int64_t row, const Answer& answer) {
  args.beta[row] = answer.beta;
  args.kl[row] = static_cast<float>(answer.kl);
  if (args.sweeps != nullptr) args.sweeps[row] = answer.sweeps;
}

__device__ __forceinline__ void write_fault(const KernelArgs& args, int64_t row, int32_t sweeps) {
  args.beta[row] = args.kl[row] = NAN;
  if (args.sweeps != nullptr) args.sweeps[row] = sweeps;
  if (args.token == nullptr) return;
  args.token[row] = -1;
  args.log_prob[row] = args.student_log_prob[row] = args.teacher_log_prob[row] = NAN;
}

// All threads of all blocks of the row: the block that holds the token draws it.
template <typename T, typename Source, int kWarps>
__device__ __forceinline__ void draw(const KernelArgs& args, int64_t row, double uniform, const Source& source,
                                     Chunks block_chunks, const Cluster& cluster, BlockState<kWarps>& state, int warp,
                                     int lane) {
  const Answer& answer = state.answer;
  if (warp == 0) {
    if (lane < cluster.ranks) {
      const double* ends = state.ends_mass[lane];
      state.mass[lane] = answer.status == Status::kStudent   ? ends[0]
                         : answer.status == Status::kTeacher ? ends[1]
                                                             : interior_mass(state, state.by_rank[lane]);
    }
    __syncwarp();
    if (lane == 0) {
      double total = 0.0;
      for (int r = 0; r < cluster.ranks; ++r) total += state.mass[r] > 0.0 ? state.mass[r] : 0.0;
      state.target = uniform * total;
      state.chosen_rank = choose(state.mass, cluster.ranks, &state.target);
    }
    __syncwarp();
    if (state.chosen_rank == cluster.rank) {
      // In the block's own frame and rounding; the target goes over as a share of the block's mass.
      if (lane == 0) state.target /= state.mass[cluster.rank];
      __syncwarp();
      if (lane < kWarps) {
        const float* ends = state.ends[lane];
        state.mass[lane] = answer.status == Status::kStudent   ? static_cast<double>(ends[0]) + ends[8]
                           : answer.status == Status::kTeacher ? static_cast<double>(ends[4])
                                                               : interior_mass(state, state.exact[lane]);
      }
      __syncwarp();
      if (lane == 0) {
        double total = 0.0;
        for (int w = 0; w < kWarps; ++w) total += state.mass[w] > 0.0 ? state.mass[w] : 0.0;
        state.target *= total;
        state.chosen_warp = choose(state.mass, kWarps, &state.target);
        state.target /= state.mass[state.chosen_warp];
      }
    }
  }
  __syncthreads();
  if (state.chosen_rank != cluster.rank) return;
  draw_from<T>(source, block_chunks.part(state.chosen_warp, kWarps), state.target, FloatWeight(state, args.scale),
               state, warp, lane);
  __syncthreads();
  if (threadIdx.x == 0) write_draw(args, row, answer, state.drawn);
}

}  // namespace trb::cuda
