// One token from mu, or from max(mu - pi_S, 0), by the inverse of its cumulative distribution, in token order: the
// first token whose cumulative mass exceeds uniform times the total.
//
// By levels: the rank, the warp that swept the token, a part of that warp's chunks (and a part of the part, until it is
// one chunk), the lane, the token. Each level holds at most 32 masses, one a lane, and passes on which share of the
// chosen mass lies before the token: what a level's masses are rounded by, the next one's do not add up. The masses of
// ranks and warps are those that the last sweep left behind, the others are taken again, with sums in double: 53 bits
// of uniform reach tokens of any probability. A mass of zero is never chosen, so a masked token never is; if rounding
// at uniform -> 1 leaves the share unreached, the last mass above zero stands.
#pragma once

#include "decision.cuh"

namespace trb::cuda {

__device__ __forceinline__ double sum_over_lanes(double value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// All lanes of a warp: the lane at `share` of the sum of their masses, and `share` becomes the one within its mass. -1
// where no lane has any.
__device__ __forceinline__ int choose_lane(double mass, int lane, double* share) {
  const double own = mass > 0.0 ? mass : 0.0;
  double up_to = own;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const double other = __shfl_up_sync(kAllLanes, up_to, distance);
    if (lane >= distance) up_to += other;
  }
  const double target = *share * __shfl_sync(kAllLanes, up_to, kWarp - 1);
  const unsigned passing = __ballot_sync(kAllLanes, own > 0.0 && up_to > target);
  const unsigned holding = __ballot_sync(kAllLanes, own > 0.0);
  if (holding == 0) return -1;
  const int chosen = passing != 0 ? __ffs(passing) - 1 : kWarp - 1 - __clz(holding);
  const double within = (target - __shfl_sync(kAllLanes, up_to - own, chosen)) / __shfl_sync(kAllLanes, own, chosen);
  *share = within > 0.0 ? within : 0.0;
  return chosen;
}

// Weights of what is drawn from, in any one unit of a block; `a`, `b` are raw logits.
template <typename T>
struct FloatWeight {
  const ExactFrame* residual;  // in shared memory; null where mu is drawn from
  ExactFrame exact;
  EndsSweep::Frame ends;  // of the block: a slice far below the row's maxima keeps its weights
  Status status;

  template <int kWarps>
  __device__ __forceinline__ explicit FloatWeight(const BlockState<kWarps>& state)
      : residual(state.token_from == TokenFrom::kResidual ? &state.residual_frame : nullptr),
        exact(state.frame),
        ends{state.temperature.scale, state.shift_of_block[0], state.shift_of_block[1]},
        status(state.answer.status) {}

  __device__ __forceinline__ double operator()(float a, float b) const {
    if (residual != nullptr) return above_student(a, b, *residual);
    const bool in_student = a > -INFINITY, in_teacher = b > -INFINITY;
    if (!in_student || (status != Status::kStudent && !in_teacher)) return 0.0;
    return status == Status::kStudent   ? ex2(fmaf(a, ends.scale, -ends.shift_student))
           : status == Status::kTeacher ? ex2(fmaf(b, ends.scale, -ends.shift_teacher))
                                        : DirectSweep::weight(a, difference<T>(a, b, exact) - exact.centre, exact);
  }

  // Not inlined: a handful of calls a row, at places where many tokens are unrolled.
  static __device__ __noinline__ float above_student(float a, float b, const ExactFrame& frame) {
    return ResidualSweep::weight<T>(a, b, frame);
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

// All threads of a block: the token at `share` of the mass of `chunks`, left in state.drawn.
template <typename T, typename Source, typename Weight, int kWarps>
__device__ __forceinline__ void draw_from(const Source& source, Chunks chunks, double share, const Weight& weight,
                                          BlockState<kWarps>& state, int warp, int lane) {
  bool found = true;
  while (found && chunks.end - chunks.begin > 1) {
    const int parts = min(kParts, chunks.end - chunks.begin);
#pragma unroll 1
    for (int i = warp; i < parts; i += kWarps) {
      const Chunks part = chunks.part(i, parts);
      double mass = 0.0;
#pragma unroll 1
      for (int32_t chunk = part.begin; chunk < part.end; ++chunk) mass += Weighed<T>(source, chunk, lane, weight).sum;
      mass = sum_over_lanes(mass);
      if (lane == 0) state.mass[i] = mass;
    }
    __syncthreads();
    const int chosen = choose_lane(lane < parts ? state.mass[lane] : 0.0, lane, &share);
    __syncthreads();
    found = chosen >= 0;
    if (found) chunks = chunks.part(chosen, parts);
  }
  if (warp != 0) return;
  const Weighed<T> tokens(source, chunks.begin, lane, weight);
  const int owner = choose_lane(found ? tokens.sum : 0.0, lane, &share);
  if (lane != (owner < 0 ? 0 : owner)) return;
  Token drawn{-1, 0.0f, 0.0f};
  double running = 0.0;
  bool reached = false;
#pragma unroll
  for (int i = 0; i < Weighed<T>::kTokens; ++i) {
    running += tokens.w[i];
    if (owner >= 0 && tokens.w[i] > 0.0 && !reached) {
      drawn = {(static_cast<int64_t>(chunks.begin) * kWarp + lane) * Weighed<T>::kTokens + i, tokens.a[i], tokens.b[i]};
      reached = running > share * tokens.sum;
    }
  }
  state.drawn = drawn;
}

// One thread of the row: all that is written where no token is drawn.
template <int kWarps>
__device__ __forceinline__ void write_without_a_draw(const KernelArgs& args, int64_t row,
                                                     const BlockState<kWarps>& state) {
  const TokenFrom from = state.token_from;
  if (from == TokenFrom::kFault) {
    write_fault(args, row, state.answer.sweeps);
  } else if (from == TokenFrom::kNowhere) {
    write_answer(args, row, state.answer);
  } else if (from == TokenFrom::kDraft) {
    write_token(args, row, state.answer, state.draft, Verdict::kAccepted);
  }
}

// The mass of part of a row under the answer, from its sums of the last sweep.
template <typename Real, int kWarps>
__device__ __forceinline__ double interior_mass(const BlockState<kWarps>& state, const Real* sums) {
  const double h = state.solver.shift();
  return state.form == Form::kStable ? shifted_stable_mass(sums, sums[6], h / state.solver.swept().beta)
                                     : shifted_mass(sums, h * state.answer.inverse_temperature);
}

template <typename Real>
__device__ __forceinline__ double ends_mass(Status status, const Real* sums) {
  return status == Status::kStudent ? static_cast<double>(sums[0]) + sums[8] : static_cast<double>(sums[4]);
}

__device__ __forceinline__ void write_answer(const KernelArgs& args, int64_t row, const Answer& answer) {
  args.beta[row] = answer.beta;
  args.kl[row] = static_cast<float>(answer.kl);
  if (args.sweeps != nullptr) args.sweeps[row] = answer.sweeps;
}

__device__ __forceinline__ void write_fault(const KernelArgs& args, int64_t row, int32_t sweeps) {
  args.beta[row] = args.kl[row] = NAN;
  if (args.sweeps != nullptr) args.sweeps[row] = sweeps;
  if (args.verifies()) args.verdicts[row] = RowVerdict{};
  if (args.token == nullptr) return;
  args.token[row] = -1;
  args.log_prob[row] = args.student_log_prob[row] = args.teacher_log_prob[row] = NAN;
}

// Everything `sample` returns of a row, and what `verify` is made of.
__device__ __forceinline__ void write_token(const KernelArgs& args, int64_t row, const Answer& answer,
                                            const Token& token, Verdict verdict) {
  if (token.token < 0) {
    write_fault(args, row, answer.sweeps);
    return;
  }
  write_answer(args, row, answer);
  const LogProbs of = log_probs_of(answer, token);
  const float student = static_cast<float>(of.student), teacher = static_cast<float>(of.teacher),
              behavior = static_cast<float>(of.behavior);
  if (args.verifies()) {
    args.verdicts[row] = {token.token, verdict, student, teacher, behavior, answer.beta, static_cast<float>(answer.kl)};
    return;
  }
  args.token[row] = token.token;
  args.log_prob[row] = behavior;
  args.student_log_prob[row] = student;
  args.teacher_log_prob[row] = teacher;
}

// Warp 0: whether anything is left of mu above the student, from what the blocks have sent.
template <int kWarps>
__device__ __forceinline__ void choose_residual(BlockState<kWarps>& state, int slot, int ranks, int lane) {
  const bool some = lane < ranks && state.record[slot][lane].sums[0] > 0.0;
  if (!__any_sync(kAllLanes, some) && lane == 0) state.token_from = TokenFrom::kMu;
}

// All threads of all blocks of the row: the block that holds the token draws it and writes the row's outputs. The sums
// of the ranks in `slot` are those of the last sweep, of the residual where that is drawn from.
template <typename T, typename Source, int kWarps>
__device__ __forceinline__ void draw(const KernelArgs& args, int64_t row, const Source& source, Chunks block_chunks,
                                     const Cluster& cluster, BlockState<kWarps>& state, int slot, int warp, int lane) {
  if (warp == 0) {
    const Status status = state.answer.status;
    const bool residual = state.token_from == TokenFrom::kResidual, interior = status == Status::kInterior;
    double share = state.uniform, mass = 0.0;
    if (lane < cluster.ranks) {
      const double* sums = state.record[slot][lane].sums;
      mass = residual ? sums[0] : interior ? interior_mass(state, sums) : ends_mass(status, state.ends_of_rank[lane]);
    }
    const int rank = choose_lane(mass, lane, &share);
    mass = 0.0;
    if (lane < kWarps) {
      mass = residual   ? state.residual[lane][0]
             : interior ? interior_mass(state, state.exact[lane])
                        : ends_mass(status, state.ends[lane]);
    }
    const int chosen_warp = choose_lane(mass, lane, &share);
    if (lane == 0) {
      // No mass at all (a row at the end of float32's exponents): the first block says so.
      state.chosen_rank = rank < 0 ? 0 : rank;
      state.chosen_warp = rank < 0 ? -1 : chosen_warp;
      state.fraction = share;
    }
  }
  __syncthreads();
  if (state.chosen_rank != cluster.rank) return;
  const int chosen_warp = state.chosen_warp;
  const Chunks chunks = chosen_warp < 0 ? Chunks{0, 0} : block_chunks.part(chosen_warp, kWarps);
  if (chunks.begin < chunks.end) {
    draw_from<T>(source, chunks, state.fraction, FloatWeight<T>(state), state, warp, lane);
  } else if (threadIdx.x == 0) {
    state.drawn = Token{-1, 0.0f, 0.0f};
  }
  __syncthreads();
  if (threadIdx.x == 0) write_token(args, row, state.answer, state.drawn, Verdict::kDrawn);
}

}  // namespace trb::cuda
