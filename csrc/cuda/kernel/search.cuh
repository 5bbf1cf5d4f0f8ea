// Searches for beta: after each sweep, adds up what the blocks of the row have sent and lets the solver decide what is
// swept next.
//
// Warp 0 of every block does this by itself, from the same numbers in the same order, so that all blocks reach the same
// decision to the last bit without another exchange. All other warps wait for it, so it is kept short. The scalars are
// in double: a few dozen additions, one logarithm at a time (the four of the first sweep on four lanes) and the
// divisions of csrc/solver. Only the search of the interpolation is in float.
#pragma once

#include <new>

#include "acceptance.cuh"
#include "sweep.cuh"

namespace trb::cuda {

constexpr int kMaxSweeps = 40;  // sweeps on chip are cheap, and the bisection of float32 numbers ends before
constexpr float kLargestShiftOfRow = 4e6f;  // in units of log 2; float32 holds all whole numbers up to here

// 2^n for a whole number n <= 0; 0 below the smallest normal number.
__device__ __forceinline__ double power_of_two(float n) {
  return n >= -1022.0f ? __longlong_as_double(static_cast<long long>(n + 1023.0f) << 52) : 0.0;
}

// Writes the moments about 0 of numbers that are `delta` larger, with weights `factor` times as large.
__device__ __forceinline__ void move_moments(const double* s, double factor, double delta, double* out) {
  const double s0 = s[0] * factor, s1 = s[1] * factor, s2 = s[2] * factor, s3 = s[3] * factor;
  out[0] = s0;
  out[1] = s1 + delta * s0;
  out[2] = s2 + delta * (2.0 * s1 + delta * s0);
  out[3] = s3 + delta * (3.0 * s2 + delta * (3.0 * s1 + delta * s0));
}

// Warp 0: adds up the first sweep's sums of all blocks in state.total, in one frame.
template <int kWarps>
__device__ __forceinline__ void gather_ends(BlockState<kWarps>& state, int slot, int ranks, int lane) {
  // 1. The row's extremes and frame are the maxima over its blocks, one block per lane.
  const bool holds = lane < ranks;
  const Record& record = state.record[slot][holds ? lane : 0];
  const float student = holds ? record.shift_student : -INFINITY, teacher = holds ? record.shift_teacher : -INFINITY;
  const float row_student = max_over_lanes(student), row_teacher = max_over_lanes(teacher);
  const float max_student = max_over_lanes(record.max_student), max_teacher = max_over_lanes(record.max_teacher);
  const float high = max_over_lanes(record.high), low = min_over_lanes(record.low);
  // 2. Each lane moves the sums of its block into the row's frame.
  if (holds) {
    const double at_zero = power_of_two(student - row_student), at_one = power_of_two(teacher - row_teacher);
    const bool both = student > -INFINITY && teacher > -INFINITY;
    const double delta = both ? static_cast<double>(teacher - student) - (row_teacher - row_student) : 0.0;
    double* out = state.ends_of_rank[lane];
    move_moments(record.sums, at_zero, delta, out);
    move_moments(record.sums + 4, at_one, delta, out + 4);
    out[8] = record.sums[8] * at_zero;
    out[9] = record.sums[9] * at_one;
  }
  if (lane == 0) {
    state.extreme_of_row[0] = max_student;
    state.extreme_of_row[1] = max_teacher;
    state.extreme_of_row[2] = high;
    state.extreme_of_row[3] = low;
    state.shift_of_row[0] = row_student;
    state.shift_of_row[1] = row_teacher;
  }
  __syncwarp();
  // 3. One lane per sum adds up the blocks in order of rank, and four lanes take the logarithms.
  if (lane < EndsSweep::kSums) {
    double total = 0.0;
#pragma unroll 1
    for (int r = 0; r < ranks; ++r) total += state.ends_of_rank[r][lane];
    state.total[lane] = total;
  }
  __syncwarp();
  if (lane < 4) {
    const double end = state.total[lane % 2 * 4], lost = lane < 2 ? 0.0 : state.total[8 + lane % 2];
    state.log_of[lane] = std::log(end + lost);
  }
  __syncwarp();
}

// Warp 0: adds up the sums of an exact sweep, whose frame all blocks share.
template <int kWarps>
__device__ __forceinline__ void gather_exact(BlockState<kWarps>& state, int slot, int ranks, int lane) {
  if (lane < (state.form == Form::kStable ? StableSweep::kSums : DirectSweep::kSums)) {
    double total = 0.0;
#pragma unroll 1
    for (int r = 0; r < ranks; ++r) total += state.record[slot][r].sums[lane];
    state.total[lane] = total;
  }
  __syncwarp();
}

// Converts a row's numbers: logits to nats, and b - a to D. `base` is the constant that `difference` (sweep_terms.cuh)
// leaves out of b - a for float32 logits.
struct Units {
  double inverse_temperature, temperature;
  double base;
  double gap;  // D = (b - a) / T - gap

  template <typename T, int kWarps>
  static __device__ __forceinline__ Units of(const BlockState<kWarps>& state) {
    const bool relative = std::is_same_v<T, float>;
    return {state.temperature.scale * kLn2, state.temperature.rounded,
            relative ? static_cast<double>(state.extreme_of_row[1]) - state.extreme_of_row[0] : 0.0,
            (static_cast<double>(state.shift_of_row[1]) - state.shift_of_row[0]) * kLn2};
  }
};

// One thread: sets the frame of the sweep that the solver asks for.
template <int kWarps>
__device__ __forceinline__ void frame_sweep(BlockState<kWarps>& state, const SweepPlan& plan, const Units& units) {
  const float scale = state.temperature.scale;
  state.form = plan.form;
  // For a difference d and a center c, D = (d - c) / T + (c + base) / T - gap.
  const double center = (plan.center + units.gap) * units.temperature - units.base;
  ExactFrame& frame = state.frame;
  frame.scale = scale;
  frame.shift = state.shift_of_row[0];
  frame.slope = plan.beta * scale;
  frame.base_student = state.extreme_of_row[0];
  frame.base_teacher = state.extreme_of_row[1];
  frame.center = static_cast<float>(center);
  state.kappa = 0.0;
  double rounded;  // the center that the rounded numbers of the frame amount to
  if (plan.form == Form::kStable) {
    frame.tilt = static_cast<float>(plan.beta * units.inverse_temperature);
    frame.offset = static_cast<float>(frame.tilt * center);
    rounded = static_cast<double>(frame.offset) / frame.tilt;
  } else {
    const float kappa = floorf(static_cast<float>(plan.kappa) * kLog2eFloat);
    frame.shift += kappa;
    state.kappa = kappa * kLn2;
    frame.tilt = frame.offset = 0.0f;
    rounded = frame.center;
  }
  state.center = (rounded + units.base) * units.inverse_temperature - units.gap;
}

// One thread: keeps the answer that the solver has found.
template <int kWarps>
__device__ __forceinline__ void keep_answer(BlockState<kWarps>& state, const Units& units) {
  Answer& answer = state.answer;
  const Solver<float>& solver = state.solver;
  answer.status = solver.status();
  answer.beta = solver.beta();
  answer.kl = solver.kl();
  if (answer.status == Status::kFault) return;
  answer.inverse_temperature = units.inverse_temperature;
  answer.reference_student = state.shift_of_row[0] * kLn2;
  answer.reference_teacher = state.shift_of_row[1] * kLn2;
  answer.max_student = state.extreme_of_row[0];
  answer.max_teacher = state.extreme_of_row[1];
  answer.log_student = state.log_of[2];
  answer.log_teacher = state.log_of[3];
  if (answer.status == Status::kInterior) {
    const Node& swept = solver.swept();
    const double h = solver.shift();
    answer.log_norm =
        state.log_of[0] + swept.log_gain + h * (swept.mean + h * (0.5 * swept.k2 + h * swept.k3 * (1.0 / 6.0)));
    state.frame.slope = answer.beta * state.temperature.scale;  // for the weights from which a token is drawn
  } else {
    answer.log_norm = answer.status == Status::kStudent ? answer.log_student : state.log_of[1];
  }
}

// One thread: sets the frame of max(mu - pi_S, 0). Its center is that of the last exact sweep or, for the teacher,
// which had none, the difference at which mu and pi_S are equal.
template <int kWarps>
__device__ __forceinline__ void frame_residual(BlockState<kWarps>& state, const Units& units) {
  const Answer& answer = state.answer;
  ExactFrame& frame = state.residual_frame;
  frame = state.frame;
  frame.scale = state.temperature.scale;
  frame.shift = state.shift_of_row[0];
  frame.base_student = state.extreme_of_row[0];
  frame.base_teacher = state.extreme_of_row[1];
  frame.tilt = static_cast<float>(answer.beta * units.inverse_temperature);
  // log mu - log pi_S = beta D - gain
  const double gain = answer.log_norm - answer.log_student;
  if (answer.status == Status::kTeacher) {
    frame.center = static_cast<float>((gain + units.gap) * units.temperature - units.base);
  }
  const double center = (frame.center + units.base) * units.inverse_temperature - units.gap;
  frame.offset = static_cast<float>(gain - answer.beta * center);
}

// One thread, after gather_ends: begins the search. Returns false if the range of float32 exponents is too small for
// the row.
template <int kWarps>
__device__ __forceinline__ bool begin_search(BlockState<kWarps>& state, const Units& units, int32_t vocab) {
  const float max_student = state.extreme_of_row[0], max_teacher = state.extreme_of_row[1];
  const float high = state.extreme_of_row[2], low = state.extreme_of_row[3];
  const double zero = state.total[0], one = state.total[4];
  const bool disjoint = !(low <= high);
  Start start;
  start.nodes = 2;
  start.fault =
      !(max_student < INFINITY && max_teacher < INFINITY && max_student > -INFINITY && max_teacher > -INFINITY);
  start.range = (static_cast<double>(high) - low) * units.inverse_temperature;
  state.answer.sweeps = 1;
  state.frame = ExactFrame{};
  // A vocabulary of one token has probability 1, which only double precision gives exactly.
  const bool reachable = vocab > 1 && fabsf(state.shift_of_row[0]) <= kLargestShiftOfRow &&
                         fabsf(state.shift_of_row[1]) <= kLargestShiftOfRow &&
                         (disjoint || (start.range <= kLargestRangeOnGpu && zero > kLeastMass && one > kLeastMass));
  if (!start.fault && !reachable) return false;
  start.phi = disjoint ? INFINITY : state.total[8] > 0.0 ? log1p(state.total[8] / zero) : 0.0;
  start.uncertainty = 8e-6 + 4e-7 * start.range;
  double s[8], unit = 1.0;
#pragma unroll
  for (int k = 0; k < 4; ++k, unit *= kLn2) {
    s[k] = state.total[k] * unit;
    s[k + 4] = state.total[k + 4] * unit;
  }
  start.node[0] = node_of_moments(0.0, s, 0.0);
  start.node[1] = node_of_moments(1.0, s + 4, state.log_of[1] - state.log_of[0]);
  state.zero_mean = start.node[0].mean;
  new (&state.solver) Solver<float>(state.epsilon, kMaxSweeps, false);
  state.solver.begin(start);
  return true;
}

// One thread, after gather_exact: gives the solver the node of the sweep.
template <int kWarps>
__device__ __forceinline__ void continue_search(BlockState<kWarps>& state, const Units& units) {
  const double beta = state.solver.swept_beta();
  Node node;
  if (state.form == Form::kStable) {
    node = node_of_stable_sums(beta, state.total);
  } else {
    double s[4], unit = 1.0;
#pragma unroll
    for (int k = 0; k < 4; ++k, unit *= units.inverse_temperature) s[k] = state.total[k] * unit;
    node = node_of_moments(beta, s, std::log(s[0]) + state.kappa - state.log_of[0]);
  }
  node.mean += state.center;
  node.log_gain += beta * state.center;
  state.solver.update(&node, 1, true);
}

// One thread: decides what the row's blocks do next. Not inlined, to save the kernel's registers and instruction cache.
template <typename T, int kWarps>
__device__ __noinline__ void decide(const KernelArgs& args, BlockState<kWarps>& state, bool first) {
  const Units units = Units::of<T>(state);
  if (!first) {
    continue_search(state, units);
  } else if (!begin_search(state, units, args.vocab)) {
    state.action = Action::kDouble;
    return;
  }
  const bool sweep = state.solver.next();
  state.answer.sweeps = state.solver.sweeps();
  if (sweep) {
    const SweepPlan plan = plan_sweep(state.solver, state.log_of[0], state.zero_mean, 0.0, kStableBelow);
    frame_sweep(state, plan, units);
    state.action = plan.in_range ? Action::kSweep : Action::kDouble;
  } else {
    keep_answer(state, units);
    state.token_from = token_from(args, state);
    if (state.token_from == TokenFrom::kResidual) frame_residual(state, units);
    state.action = Action::kDone;
  }
}

}  // namespace trb::cuda
