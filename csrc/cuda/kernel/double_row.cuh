// Solves a row in double precision, by one block that reads device memory in every sweep. It is for rows whose logits
// lie too far apart for float32 exponents: log-ratios that span more than 1000 nats, as with a mask of -1e4 or of the
// lowest finite number in only one model; a common support with less than kLeastCommonMass of a model; 16-bit maxima
// more than kLargestOffset apart. It is also for rows of one token.
//
// This is rare and slow: a few hundred double-precision instructions per token and sweep, which are several
// milliseconds per row on a data-center GPU, which has double precision at half speed, and 30 times that on others.
// The mathematics is that of csrc/cpu/double_row.cpp: the mixture formulas of csrc/solver/row_sums.h add a lane's
// tokens in token order, then the lanes and the warps in a fixed tree.
#pragma once

#include <new>

#include "token_draw.cuh"

namespace trb::cuda {

enum class Support { kCommon, kStudent, kTeacher };

// All threads of the block: sets the frame of the answer, whose zeros are the largest logits of the tokens that both
// models have or, if they have none, of the row. Beside an offset of 1e30, or a token of that size that the other model
// masks, the logits' differences would have no digits.
template <typename T, int kWarps>
__device__ __forceinline__ void set_double_frame(const KernelArgs& args, const RowPair<T>& pair,
                                                 BlockState<kWarps>& state, int warp, int lane) {
  float student = -INFINITY, teacher = -INFINITY;
#pragma unroll 1
  for (int32_t token = threadIdx.x; token < args.vocab; token += kWarps * kWarp) {
    const float a = pair.student_logit(token), b = pair.teacher.logit(token);
    const bool common = a > -INFINITY && b > -INFINITY;
    student = common ? fmaxf(student, a) : student;
    teacher = common ? fmaxf(teacher, b) : teacher;
  }
  const float largest_student = from_ordered(__reduce_max_sync(kAllLanes, ordered(student)));
  const float largest_teacher = from_ordered(__reduce_max_sync(kAllLanes, ordered(teacher)));
  if (lane == 0) {  // they are kept where the warp's sums will be
    state.double_sums[warp].min_d = largest_student;
    state.double_sums[warp].max_d = largest_teacher;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w) {
      student = fmaxf(student, static_cast<float>(state.double_sums[w].min_d));
      teacher = fmaxf(teacher, static_cast<float>(state.double_sums[w].max_d));
    }
    const bool none = student == -INFINITY;
    Answer& answer = state.answer;
    answer.max_student = none ? state.row.max_student : student;
    answer.max_teacher = none ? state.row.max_teacher : teacher;
    answer.inverse_temperature = state.temperature.inverse;
    answer.reference_student = answer.max_student * answer.inverse_temperature;
    answer.reference_teacher = answer.max_teacher * answer.inverse_temperature;
  }
  __syncthreads();
}

// A logit in the frame of the answer.
__device__ __forceinline__ double in_frame(float logit, float largest, const Answer& answer) {
  return (static_cast<double>(logit) - largest) * answer.inverse_temperature;
}

// All threads of the block: leaves in state.double_sums[0] the distribution proportional to e^x, e^y or e^{t_beta} over
// the tokens of `support`. Only thread 0 may read it, and must have read it before the caller's next barrier.
template <typename T, int kWarps>
__device__ __forceinline__ void sweep_in_double(const KernelArgs& args, const RowPair<T>& pair, Support support,
                                                double beta, BlockState<kWarps>& state, int warp, int lane) {
  // 1. Each lane adds its tokens.
  DoubleSums own{{}, INFINITY, -INFINITY};
  const Answer& frame = state.answer;
#pragma unroll 1
  for (int32_t token = threadIdx.x; token < args.vocab; token += kWarps * kWarp) {
    const float a = pair.student_logit(token), b = pair.teacher.logit(token);
    const bool in_student = a > -INFINITY, in_teacher = b > -INFINITY, common = in_student && in_teacher;
    if (!(support == Support::kCommon ? common : support == Support::kStudent ? in_student : in_teacher)) continue;
    const double x = in_frame(a, frame.max_student, frame), y = in_frame(b, frame.max_teacher, frame);
    const double t = support == Support::kStudent ? x : support == Support::kTeacher ? y : tilted_logit(x, y, beta);
    own.tilt.add(t, common ? y - x : 0.0, common ? x : 0.0);
    if (common) {
      own.min_d = fmin(own.min_d, y - x);
      own.max_d = fmax(own.max_d, y - x);
    }
  }
  // 2. Lane 0 gets the sums of its warp, by halves, and thread 0 adds those of the warps in turn.
#pragma unroll 1
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Tilt& t = own.tilt;
    const Tilt other{{from_lane_above(t.weight.peak, distance), from_lane_above(t.weight.mass, distance)},
                     from_lane_above(t.mean, distance),
                     from_lane_above(t.m2, distance),
                     from_lane_above(t.m3, distance),
                     from_lane_above(t.below, distance),
                     from_lane_above(t.x, distance)};
    own.min_d = fmin(own.min_d, from_lane_above(own.min_d, distance));
    own.max_d = fmax(own.max_d, from_lane_above(own.max_d, distance));
    own.tilt.merge(other);
  }
  if (lane == 0) state.double_sums[warp] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int w = 1; w < kWarps; ++w) {
      DoubleSums& all = state.double_sums[0];
      all.tilt.merge(state.double_sums[w].tilt);
      all.min_d = fmin(all.min_d, state.double_sums[w].min_d);
      all.max_d = fmax(all.max_d, state.double_sums[w].max_d);
    }
  }
}

struct DoubleWeight {
  const Answer& answer;
  bool residual;

  // log mu of a token, -inf outside its support. At the ends no factor of 0 meets an -inf.
  __device__ __forceinline__ double log(float a, float b) const {
    const double beta = answer.beta, x = in_frame(a, answer.max_student, answer),
                 y = in_frame(b, answer.max_teacher, answer);
    if (!(a > -INFINITY) || (beta > 0.0 && !(b > -INFINITY))) return -INFINITY;
    return (beta == 0.0 ? x : tilted_logit(x, y, beta)) - answer.log_norm;
  }
  // Not inlined, because eight of them at a time would take all registers.
  __device__ __noinline__ double operator()(float a, float b) const {
    const double log_mu = log(a, b), mu = ::exp(log_mu);
    if (!residual || mu == 0.0) return mu;
    const double above = log_mu - (in_frame(a, answer.max_student, answer) - answer.log_student);
    return above > 0.0 ? -::expm1(-above) * mu : 0.0;
  }
};

constexpr int kDoubleEnds = 4;  // mu_0, mu_1, the student, the teacher

// One thread: takes in the sums of sweep number `sweep`, and lets the solver continue once the ends are known. Not
// inlined, to save the kernel's registers.
template <int kWarps>
__device__ __noinline__ void continue_double_search(BlockState<kWarps>& state, int sweep, double beta) {
  const DoubleSums& swept = state.double_sums[0];
  Ends& ends = state.double_ends;
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
    new (&state.double_solver) Solver(state.epsilon, kMaxDoubleSweeps, false);
    state.start = start_of(ends);  // in shared memory, because it is indexed by a number that is known only at run time
    state.double_solver.begin(state.start);
  } else {
    const Node node = node_of(beta, swept.tilt, ends.zero);
    state.double_solver.update(&node, 1, true);
  }
  state.double_sweeps = sweep < kDoubleEnds - 1 || state.double_solver.next();
}

// All threads of the block: solves the row and writes all its outputs.
template <typename T, int kWarps>
__device__ __forceinline__ void solve_double_row(const KernelArgs& args, int64_t row, const RowPair<T>& pair,
                                                 BlockState<kWarps>& state, int warp, int lane) {
  // 1. Sweeps the four ends, then the betas that the solver asks for. One loop does both, so that this much
  // double-precision code is inlined only once.
  set_double_frame(args, pair, state, warp, lane);
  bool sweeps = true;
#pragma unroll 1
  for (int sweep = 0; sweeps; ++sweep) {
    const Support support = sweep == 2 ? Support::kStudent : sweep == 3 ? Support::kTeacher : Support::kCommon;
    const double beta = sweep == 0            ? 0.0
                        : sweep == 1          ? 1.0
                        : sweep < kDoubleEnds ? 0.0
                                              : state.double_solver.swept_beta();
    sweep_in_double(args, pair, support, beta, state, warp, lane);
    if (threadIdx.x == 0) continue_double_search(state, sweep, beta);
    __syncthreads();
    sweeps = state.double_sweeps;
  }
  // 2. Keeps the answer, and writes what needs no draw.
  if (threadIdx.x == 0) {
    Answer& answer = state.answer;
    const Solver& solver = state.double_solver;
    answer.sweeps += solver.sweeps();
    answer.status = solver.status();
    answer.beta = solver.beta();
    answer.kl = solver.kl();
    const Tilt& tilt = state.double_sums[0].tilt;  // of the last sweep
    answer.log_student = state.double_ends.student.log();
    answer.log_teacher = state.double_ends.teacher.log();
    const double h = solver.shift();
    answer.log_norm = answer.status == Status::kStudent   ? answer.log_student
                      : answer.status == Status::kTeacher ? state.double_ends.one.weight.log()
                                                          : tilt.log_mass_shifted_by(h);
    state.token_from = token_from(args, state);
    write_without_a_draw(args, row, state);
  }
  __syncthreads();
  // 3. Writes log mu.
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
  // 4. Draws the token. If rounding leaves no mass in max(mu - pi_S, 0), draws again, from mu.
#pragma unroll 1
  for (bool again = true; again;) {
    const bool residual = from == TokenFrom::kResidual;
    draw_from<T>(StreamedRow<T>(pair), chunks_of_row<T>(args.vocab), state.uniform,
                 DoubleWeight{state.answer, residual}, state, warp, lane);
    __syncthreads();
    again = residual && state.drawn.token < 0;
    from = TokenFrom::kMu;
    __syncthreads();  // because draw_from has no barrier for a row of one chunk
  }
  if (threadIdx.x == 0) write_token(args, row, state.answer, state.drawn, Verdict::kDrawn);
}

}  // namespace trb::cuda
