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

// One thread: the frame of the answer begins at these logits.
template <int kWarps>
__device__ __forceinline__ void set_frame(BlockState<kWarps>& state, float student, float teacher) {
  Answer& answer = state.answer;
  answer.max_student = student;
  answer.max_teacher = teacher;
  answer.inverse_temperature = state.temperature.inverse;
  answer.reference_student = student * answer.inverse_temperature;
  answer.reference_teacher = teacher * answer.inverse_temperature;
}

// All threads of the block: whether the row must be solved again, in the frame that is then set
// (csrc/cpu/double_row.h says why): from the likeliest token of mu, if it lies far from the origin; or, if the answer
// is pi_S, from the row's maxima and without a budget. `frames` have been tried.
template <typename T, int kWarps>
__device__ __forceinline__ bool set_next_frame(const KernelArgs& args, const RowPair<T>& pair,
                                               BlockState<kWarps>& state, int frames, int warp, int lane) {
  // 1. Each lane finds its likeliest common token, and lane 0 that of the warp.
  const Answer& frame = state.answer;
  const double beta = frame.beta;
  double most = -INFINITY, student = 0.0, teacher = 0.0;
#pragma unroll 1
  for (int32_t token = threadIdx.x; token < args.vocab; token += kWarps * kWarp) {
    const float a = pair.student_logit(token), b = pair.teacher.logit(token);
    if (!(a > -INFINITY && b > -INFINITY)) continue;
    const double x = in_frame(a, frame.max_student, frame), y = in_frame(b, frame.max_teacher, frame);
    const double t = tilted_logit(x, y, beta);
    const bool more = t > most;
    most = more ? t : most;
    student = more ? a : student;
    teacher = more ? b : teacher;
  }
#pragma unroll 1
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const double t = from_lane_above(most, distance), a = from_lane_above(student, distance),
                 b = from_lane_above(teacher, distance);
    const bool more = t > most;
    most = more ? t : most;
    student = more ? a : student;
    teacher = more ? b : teacher;
  }
  if (lane == 0) {  // kept in place of the warp's sums, which are not needed any more
    DoubleSums& of_warp = state.double_sums[warp];
    of_warp.tilt.weight.peak = most;
    of_warp.min_d = student;
    of_warp.max_d = teacher;
  }
  __syncthreads();
  // 2. Thread 0 finds that of the block and decides.
  if (threadIdx.x == 0) {
    int of_warp = 0;
#pragma unroll 1
    for (int w = 1; w < kWarps; ++w) {
      of_warp = state.double_sums[w].tilt.weight.peak > state.double_sums[of_warp].tilt.weight.peak ? w : of_warp;
    }
    const DoubleSums& token = state.double_sums[of_warp];
    const float a = static_cast<float>(token.min_d), b = static_cast<float>(token.max_d);
    const bool far = token.tilt.weight.peak > -INFINITY &&
                     fmax(fabs(in_frame(a, frame.max_student, frame)), fabs(in_frame(b, frame.max_teacher, frame))) >
                         kFarthestFromOrigin;
    const RowFrame& row = state.row;
    const bool of_maxima = frame.max_student == row.max_student && frame.max_teacher == row.max_teacher;
    const bool again = far && frames < kMostOrigins && state.epsilon > 0.0;
    const bool as_student = !again && frame.status == Status::kStudent && !of_maxima;
    if (again) set_frame(state, a, b);
    if (as_student) {
      set_frame(state, row.max_student, row.max_teacher);
      state.epsilon = 0.0;
    }
    state.double_sweeps = frame.status != Status::kFault && (again || as_student);
  }
  __syncthreads();
  return state.double_sweeps;
}

// The weight of a token under mu, or under max(mu - pi_S, 0).
template <int kWarps>
struct DoubleWeight {
  const BlockState<kWarps>& state;
  bool residual;

  // Not inlined, because eight of them at a time would take all registers.
  __device__ __noinline__ double operator()(float a, float b) const {
    const double log_mu = log_mu_in_double(state.answer, a, b), mu = ::exp(log_mu);
    if (!residual || mu == 0.0) return mu;
    const double above = log_mu - (in_frame(a, state.row.max_student, state.answer) - state.log_sums[0]);
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
  // 1. In one frame after the other, sweeps the four ends, then the betas that the solver asks for. One loop does both,
  // so that this much double-precision code is inlined only once.
  if (threadIdx.x == 0) set_frame(state, state.row.max_student, state.row.max_teacher);
  __syncthreads();
#pragma unroll 1
  for (int frames = 1, again = 1; again; ++frames) {
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
    // 2. Keeps the answer.
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
      if (frames == 1) {
        state.log_sums[0] = answer.log_student;
        state.log_sums[1] = answer.log_teacher;
      }
      const double h = solver.shift();
      answer.log_norm = answer.status == Status::kStudent   ? answer.log_student
                        : answer.status == Status::kTeacher ? state.double_ends.one.weight.log()
                                                            : tilt.log_mass_shifted_by(h);
    }
    __syncthreads();
    again = set_next_frame(args, pair, state, frames, warp, lane);
  }
  if (threadIdx.x == 0) {
    state.token_from = token_from<true>(args, state);
    if (state.token_from == TokenFrom::kDraft) {
      write_token(args, row, state.answer, state.draft, double_log_probs_of(state, state.draft), Verdict::kAccepted);
    } else {
      write_without_a_draw(args, row, state);
    }
  }
  __syncthreads();
  // 3. Writes log mu.
  TokenFrom from = state.token_from;
  const bool fault = from == TokenFrom::kFault;
  if (args.log_probs != nullptr) {
    float* const log_probs = args.log_probs + row * args.vocab;
    for (int32_t token = threadIdx.x; token < args.vocab; token += kWarps * kWarp) {
      log_probs[token] = fault ? NAN
                               : static_cast<float>(log_mu_in_double(state.answer, pair.student_logit(token),
                                                                     pair.teacher.logit(token)));
    }
  }
  if (!is_drawn(from)) return;
  // 4. Draws the token. If rounding leaves no mass in max(mu - pi_S, 0), draws again, from mu.
#pragma unroll 1
  for (bool again = true; again;) {
    const bool residual = from == TokenFrom::kResidual;
    draw_from<T>(StreamedRow<T>(pair), chunks_of_row<T>(args.vocab), state.uniform,
                 DoubleWeight<kWarps>{state, residual}, state, warp, lane);
    __syncthreads();
    again = residual && state.drawn.token < 0;
    from = TokenFrom::kMu;
    __syncthreads();  // because draw_from has no barrier for a row of one chunk
  }
  if (threadIdx.x == 0) {
    write_token(args, row, state.answer, state.drawn, double_log_probs_of(state, state.drawn), Verdict::kDrawn);
  }
}

}  // namespace trb::cuda
