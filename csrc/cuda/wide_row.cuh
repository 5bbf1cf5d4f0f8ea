// Rows whose logits lie too far apart for float32 exponents (a log-ratio that spans more than 1000 nats: a mask of -1e4
// or of the lowest finite number in one model alone), in double precision, by one block, straight from device memory.
//
// Rare and slow: a few hundred double-precision instructions per token and sweep, several milliseconds a row on a
// data-centre GPU, where double precision runs at half speed, and 30 times that elsewhere. The mathematics are the
// CPU's (csrc/cpu/double_row.cpp): atoms joined by the mixture formulas of csrc/blend/row.h, a lane's tokens in token
// order, then a fixed tree over lanes and warps.
#pragma once

#include "draw.cuh"

namespace trb::cuda {

constexpr int kMaxWideSweeps = 64;  // safety only: bisection of float32 numbers ends before

enum class Support { kCommon, kStudent, kTeacher };

__device__ __forceinline__ double mix(double x, double y, double beta) { return (1.0 - beta) * x + beta * y; }

__device__ __forceinline__ double down(double value, int distance) {
  return __shfl_down_sync(kAllLanes, value, distance);
}

// All threads of the block: leaves in state.wide[0] the distribution proportional to e^x, e^y or e^{mix} over the
// tokens of `support`, for thread 0 alone, which must have read it before the caller's next barrier.
template <typename T, int kWarps>
__device__ __forceinline__ void sweep_wide(const KernelArgs& args, const RowPair<T>& pair, Support support, double beta,
                                           BlockState<kWarps>& state, int warp, int lane) {
  WideSums own{{}, INFINITY, -INFINITY};
  const double inverse_temperature = state.temperature.inverse;
#pragma unroll 1
  for (int32_t token = threadIdx.x; token < args.vocab; token += kWarps * kWarp) {
    const float a = pair.student_logit(token), b = pair.teacher.logit(token);
    const bool in_student = a > -INFINITY, in_teacher = b > -INFINITY, common = in_student && in_teacher;
    if (!(support == Support::kCommon ? common : support == Support::kStudent ? in_student : in_teacher)) continue;
    const double x = a * inverse_temperature, y = b * inverse_temperature;
    const double t = support == Support::kStudent ? x : support == Support::kTeacher ? y : mix(x, y, beta);
    own.tilt.add(t, common ? y - x : 0.0, common ? x : 0.0);
    if (common) {
      own.min_d = fmin(own.min_d, y - x);
      own.max_d = fmax(own.max_d, y - x);
    }
  }
  // Halves the warp, then lane 0 of each warp in turn.
#pragma unroll 1
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Tilt& t = own.tilt;
    const Tilt other{{down(t.weight.peak, distance), down(t.weight.mass, distance)},
                     down(t.mean, distance),
                     down(t.m2, distance),
                     down(t.m3, distance),
                     down(t.below, distance),
                     down(t.x, distance)};
    own.min_d = fmin(own.min_d, down(own.min_d, distance));
    own.max_d = fmax(own.max_d, down(own.max_d, distance));
    own.tilt.merge(other);
  }
  if (lane == 0) state.wide[warp] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int w = 1; w < kWarps; ++w) {
      WideSums& all = state.wide[0];
      all.tilt.merge(state.wide[w].tilt);
      all.min_d = fmin(all.min_d, state.wide[w].min_d);
      all.max_d = fmax(all.max_d, state.wide[w].max_d);
    }
  }
}

struct DoubleWeight {
  const Answer& answer;
  bool residual;

  // log of mu's weight, -inf off its support; exact at the ends, and no 0 * -inf
  __device__ __forceinline__ double log(float a, float b) const {
    const double beta = answer.beta, x = a * answer.inverse_temperature, y = b * answer.inverse_temperature;
    if (!(a > -INFINITY) || (beta > 0.0 && !(b > -INFINITY))) return -INFINITY;
    return (beta == 0.0 ? x : mix(x, y, beta)) - answer.log_norm;
  }
  // Not inlined: eight of them at a time would take all registers.
  __device__ __noinline__ double operator()(float a, float b) const {
    const double log_mu = log(a, b), mu = ::exp(log_mu);
    if (!residual || mu == 0.0) return mu;
    const double above = log_mu - (a * answer.inverse_temperature - answer.log_student);
    return above > 0.0 ? -::expm1(-above) * mu : 0.0;
  }
};

constexpr int kWideEnds = 4;  // mu_0, mu_1, the student, the teacher

// One thread: takes in sweep number `sweep`, and lets the search go on once the ends are known. Not inlined, for the
// registers of the kernel.
template <int kWarps>
__device__ __noinline__ void continue_wide_search(BlockState<kWarps>& state, int sweep, double beta) {
  const WideSums& swept = state.wide[0];
  Ends& ends = state.wide_ends;
  if (sweep == 0) {
    ends = Ends{};
    ends.zero = swept.tilt;
    ends.min_d = swept.min_d;
    ends.max_d = swept.max_d;
  } else if (sweep == 1) {
    ends.one = swept.tilt;
  } else if (sweep == 2) {
    ends.student = swept.tilt.weight;
  } else if (sweep == 3) {
    ends.teacher = swept.tilt.weight;
    new (&state.wide_solver) Solver<double>(state.epsilon, kMaxWideSweeps, false);
    state.start = start_of(ends);  // in shared memory: indexed by a number known at run time only
    state.wide_solver.begin(state.start);
  } else {
    const Node node = node_of(beta, swept.tilt, ends.zero);
    state.wide_solver.update(&node, 1, true);
  }
  if (sweep >= kWideEnds - 1) state.action = state.wide_solver.next() ? Action::kSweep : Action::kDone;
}

// All threads of the block: everything about the row, from its logits to its outputs.
template <typename T, int kWarps>
__device__ __forceinline__ void solve_wide_row(const KernelArgs& args, int64_t row, const RowPair<T>& pair,
                                               BlockState<kWarps>& state, int warp, int lane) {
  // The four ends, then the betas that the solver asks for, in one loop: this much double-precision code is inlined
  // once.
#pragma unroll 1
  for (int sweep = 0; sweep < kWideEnds || state.action == Action::kSweep; ++sweep) {
    const Support support = sweep == 2 ? Support::kStudent : sweep == 3 ? Support::kTeacher : Support::kCommon;
    const double beta = sweep == 0 ? 0.0 : sweep == 1 ? 1.0 : sweep < kWideEnds ? 0.0 : state.wide_solver.swept_beta();
    sweep_wide(args, pair, support, beta, state, warp, lane);
    if (threadIdx.x == 0) continue_wide_search(state, sweep, beta);
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    Answer& answer = state.answer;
    const Solver<double>& solver = state.wide_solver;
    answer.sweeps += solver.sweeps();
    answer.status = solver.status();
    answer.beta = solver.beta();
    answer.kl = solver.kl();
    answer.inverse_temperature = state.temperature.inverse;
    answer.reference_student = answer.reference_teacher = 0.0;
    const Tilt& tilt = state.wide[0].tilt;  // of the last sweep
    answer.log_student = state.wide_ends.student.log();
    answer.log_teacher = state.wide_ends.teacher.log();
    const double h = solver.shift();
    answer.log_norm = answer.status == Status::kStudent ? answer.log_student
                      : answer.status == Status::kTeacher
                          ? state.wide_ends.one.weight.log()
                          : tilt.weight.log() + h * (tilt.mean + h * (0.5 * tilt.m2 + h * tilt.m3 / 6.0));
    state.token_from = token_from(args, state);
    write_without_a_draw(args, row, state);
  }
  __syncthreads();
  TokenFrom from = state.token_from;
  const bool fault = from == TokenFrom::kFault;
  if (args.log_probs != nullptr) {
    const DoubleWeight weight{state.answer, false};
    float* const log_probs = args.log_probs + row * args.vocab;
    for (int32_t token = threadIdx.x; token < args.vocab; token += kWarps * kWarp) {
      log_probs[token] =
          fault ? NAN : static_cast<float>(weight.log(pair.student_logit(token), pair.teacher.logit(token)));
    }
  }
  if (!is_drawn(from)) return;
  // Once more, from mu, where rounding leaves nothing of it above the student.
#pragma unroll 1
  for (bool again = true; again;) {
    const bool residual = from == TokenFrom::kResidual;
    draw_from<T>(StreamedRow<T>(pair), chunks_of_row<T>(args.vocab), state.uniform,
                 DoubleWeight{state.answer, residual}, state, warp, lane);
    __syncthreads();
    again = residual && state.drawn.token < 0;
    from = TokenFrom::kMu;
    __syncthreads();  // a row of one chunk is drawn from without a barrier
  }
  if (threadIdx.x == 0) write_token(args, row, state.answer, state.drawn, Verdict::kDrawn);
}

}  // namespace trb::cuda
