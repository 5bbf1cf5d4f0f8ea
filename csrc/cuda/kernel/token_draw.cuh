// Draws one token from mu or from max(mu - pi_S, 0) by the inverse CDF in token order: the first token whose cumulative
// mass exceeds uniform times the total.
//
// The draw narrows the token down by levels: the section, the strip, a part of the strip's chunks (and a part of the
// part, until it is one chunk), the lane, the token. Each level has at most 32 masses, one per lane. It
// chooses one of them and hands down the share of the chosen mass that lies before the token, so that rounding errors
// of one level's masses do not add to those of the next.
//
// The masses of sections and strips are those of the last sweep. The others are summed again, in double, so that the 53
// bits of uniform reach tokens of any probability. A mass of zero is never chosen, so a masked token is never drawn. If
// rounding at uniform -> 1 leaves the share unreached, the last mass above zero is chosen.
#pragma once

#include "outputs.cuh"
#include "search.cuh"

namespace trb::cuda {

// All lanes of a warp: the lane in whose mass `share` of the sum of all masses lies. `share` becomes the share within
// that lane's mass. Returns -1 if no lane has mass.
__device__ __forceinline__ int choose_lane(double mass, int lane, double* share) {
  const double own = mass > 0.0 ? mass : 0.0;
  const double up_to = sum_up_to_lane(own, lane);
  const double target = *share * __shfl_sync(kAllLanes, up_to, kWarp - 1);
  const unsigned passing = __ballot_sync(kAllLanes, own > 0.0 && up_to > target);
  const unsigned holding = __ballot_sync(kAllLanes, own > 0.0);
  if (holding == 0) return -1;
  const int chosen = passing != 0 ? __ffs(passing) - 1 : kWarp - 1 - __clz(holding);
  const double within = (target - __shfl_sync(kAllLanes, up_to - own, chosen)) / __shfl_sync(kAllLanes, own, chosen);
  *share = within > 0.0 ? within : 0.0;
  return chosen;
}

// The weight of a token with raw logits `a` and `b` in what is drawn from. The unit may differ between blocks.
template <typename T>
struct FloatWeight {
  const ExactFrame* residual;  // in shared memory; null if the token is drawn from mu
  ExactFrame exact;
  EndsSweep::Frame ends;  // of the section, so that weights of one far below the row's maxima do not underflow
  Status status;

  template <int kWarps>
  __device__ __forceinline__ FloatWeight(const BlockState<kWarps>& state, const Plan& last, const SliceFrame& section)
      : residual(state.token_from == TokenFrom::kResidual ? &state.residual_frame : nullptr),
        exact(last.frame),
        ends(ends_frame(section, state.temperature.scale)),
        status(state.answer.status) {}

  __device__ __forceinline__ double operator()(float a, float b) const {
    if (residual != nullptr) return above_student(a, b, *residual);
    const bool in_student = a > -INFINITY, in_teacher = b > -INFINITY;
    if (!in_student || (status != Status::kStudent && !in_teacher)) return 0.0;
    return status == Status::kStudent   ? ex2(fmaf(a, ends.scale, -ends.shift_student))
           : status == Status::kTeacher ? ex2(fmaf(b, ends.scale, -ends.shift_teacher))
                                        : DirectSweep::weight(a, difference<T>(a, b, exact) - exact.center, exact);
  }

  // Not inlined, because it is called a few times per row in loops that are unrolled over many tokens.
  static __device__ __noinline__ float above_student(float a, float b, const ExactFrame& frame) {
    return ResidualSweep::weight<T>(a, b, frame);
  }
};

// A lane's tokens of one chunk and their weights.
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

// All threads of a block: draws the token at `share` of the mass of `chunks` and leaves it in state.drawn.
template <typename T, typename Source, typename Weight, int kWarps>
__device__ __forceinline__ void draw_from(const Source& source, Chunks chunks, double share, const Weight& weight,
                                          BlockState<kWarps>& state, int warp, int lane) {
  // 1. Narrows the chunks down to one: the warps sum the masses of the parts, and every warp chooses the same part.
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
      if (lane == 0) state.part_mass[i] = mass;
    }
    __syncthreads();
    const int chosen = choose_lane(lane < parts ? state.part_mass[lane] : 0.0, lane, &share);
    __syncthreads();
    found = chosen >= 0;
    if (found) chunks = chunks.part(chosen, parts);
  }
  // 2. Chooses the lane, which finds its token.
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

// The mass of mu over part of a row, from the sums of the last exact sweep.
template <typename Real, int kWarps>
__device__ __forceinline__ double interior_mass(const BlockState<kWarps>& state, const Plan& last, const Real* sums) {
  const double h = state.shift;
  return last.form == Form::kStable ? shifted_stable_mass(sums, sums[6], h / last.swept)
                                    : shifted_mass(sums, h * state.answer.inverse_temperature);
}

template <typename Real>
__device__ __forceinline__ double ends_mass(Status status, const Real* sums) {
  return status == Status::kStudent ? static_cast<double>(sums[0]) + sums[8] : static_cast<double>(sums[4]);
}

// Warp 0: draws from mu instead if, after rounding, no section has mass in max(mu - pi_S, 0).
template <int kWarps>
__device__ __forceinline__ void choose_residual(BlockState<kWarps>& state, int sections, int lane) {
  const bool some = lane < sections && state.residual_of_section[lane] > 0.0;
  if (!__any_sync(kAllLanes, some) && lane == 0) state.token_from = TokenFrom::kMu;
}

// All threads of all blocks of the row: the block that holds the token draws it and writes the row's outputs. `slot`
// holds the records of the search's last sweep, and `turn` the frames of the first one.
template <typename T, typename Source, int kWarps>
__device__ __forceinline__ void draw(const KernelArgs& args, int64_t row, const Source& source, const Cluster& cluster,
                                     BlockState<kWarps>& state, int slot, int turn, int warp, int lane) {
  const Plan& last = state.plan[slot ^ 1];
  // 1. Every block chooses the section and, if it has that section, the strip that holds the token.
  if (warp == 0) {
    const Status status = state.answer.status;
    const bool residual = state.token_from == TokenFrom::kResidual, interior = status == Status::kInterior;
    double share = state.uniform, mass = 0.0;
    if (lane < cluster.all_sections()) {
      const double* sums = state.record[slot][lane].sums;
      mass = residual   ? state.residual_of_section[lane]
             : interior ? interior_mass(state, last, sums)
                        : state.mass[status == Status::kTeacher ? 1 : 2][lane];
    }
    const int found = choose_lane(mass, lane, &share), section = max(found, 0),
              here = section - cluster.first_section();
    mass = 0.0;
    if (lane < kStripsPerSection && here >= 0 && here < cluster.sections) {
      const int strip = here * kStripsPerSection + lane;
      mass = residual   ? state.residual[strip][0]
             : interior ? interior_mass(state, last, state.exact[strip])
                        : ends_mass(status, state.ends[strip]);
    }
    const int strip = choose_lane(mass, lane, &share);
    if (lane == 0) {
      // Without any mass (a row at the end of the range of float32 exponents), the first block writes the fault.
      state.chosen_section = section;
      state.chosen_strip = found < 0 ? -1 : strip;
      state.fraction = share;
    }
  }
  __syncthreads();
  // 2. The chosen block draws the token from the chunks of the chosen strip.
  const int section = state.chosen_section, here = section - cluster.first_section(), strip = state.chosen_strip;
  if (here < 0 || here >= cluster.sections) return;
  const Chunks chunks = strip < 0 ? Chunks{0, 0} : state.chunks_of(here * kStripsPerSection + strip, 1);
  if (chunks.begin < chunks.end) {
    draw_from<T>(source, chunks, state.fraction, FloatWeight<T>(state, last, state.section[turn][here]), state, warp,
                 lane);
  } else if (threadIdx.x == 0) {
    state.drawn = Token{-1, 0.0f, 0.0f};
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    write_token(args, row, state.answer, state.drawn, log_probs_of(state.answer, state.drawn), Verdict::kDrawn);
  }
}

}  // namespace trb::cuda
