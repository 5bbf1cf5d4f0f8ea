// After each sweep: gather the sums of the cluster's blocks, and let the solver take the next step.
//
// Warp 0 of every block does this for itself from the same numbers in the same order, so all blocks take the same
// decision to the last bit without telling one another. Scalars in double: a few dozen additions, four logarithms and
// the divisions of csrc/blend; the search of the interpolation is in float.
#pragma once

#include <new>

#include "block_state.cuh"
#include "kernel_args.h"
#include "row_source.cuh"

namespace trb::cuda {

constexpr int kMaxSweeps = 40;            // on chip they are cheap; the bisection of float32 numbers ends before
constexpr double kStableBelow = 1.5e-2;   // budgets, nats: from here down the direct form's rounding (5e-7) would show
constexpr double kLargestRange = 1000.0;  // of D, nats
constexpr float kLargestShiftOfRow = 4e6f;  // whole numbers of log 2 up to here are float32 numbers
constexpr double kLn2 = 0.6931471805599453;
constexpr unsigned kAllLanes = 0xffffffffu;

// An integer of the same order as the float; NaN of positive sign, as max.NaN gives it, is the largest.
__device__ __forceinline__ int32_t ordered(float value) {
  const int32_t bits = __float_as_int(value);
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
__device__ __forceinline__ float from_ordered(int32_t value) {
  return __int_as_float(value >= 0 ? value : value ^ 0x7fffffff);
}
__device__ __forceinline__ float max_over_lanes(float value) {
  return from_ordered(__reduce_max_sync(kAllLanes, ordered(value)));
}
__device__ __forceinline__ float min_over_lanes(float value) {
  return from_ordered(__reduce_min_sync(kAllLanes, ordered(value)));
}

// 2^n for a whole n <= 0, 0 below the smallest normal number.
__device__ __forceinline__ double power_of_two(float n) {
  return n >= -1022.0f ? __longlong_as_double(static_cast<long long>(n + 1023.0f) << 52) : 0.0;
}

// Moments about 0 of numbers that are `delta` larger.
__device__ __forceinline__ void move_moments(const double* s, double factor, double delta, double* out) {
  const double s0 = s[0] * factor, s1 = s[1] * factor, s2 = s[2] * factor, s3 = s[3] * factor;
  out[0] = s0;
  out[1] = s1 + delta * s0;
  out[2] = s2 + delta * (2.0 * s1 + delta * s0);
  out[3] = s3 + delta * (3.0 * s2 + delta * (3.0 * s1 + delta * s0));
}

// Warp 0: the first sweep's sums of all blocks, in one frame and added up in state.total.
template <int kWarps>
__device__ __forceinline__ void gather_ends(BlockState<kWarps>& state, const Cluster& cluster, int slot, int lane) {
  const bool holds = lane < cluster.ranks;
  const Record* record = cluster.peer(&state.record[slot], holds ? lane : 0);
  const float student = holds ? record->shift_student : -INFINITY, teacher = holds ? record->shift_teacher : -INFINITY;
  const float row_student = max_over_lanes(student), row_teacher = max_over_lanes(teacher);
  const float max_student = max_over_lanes(record->max_student), max_teacher = max_over_lanes(record->max_teacher);
  const float high = max_over_lanes(record->high), low = min_over_lanes(record->low);
  if (holds) {
    double s[EndsSweep::kSums];
#pragma unroll
    for (int k = 0; k < EndsSweep::kSums; ++k) s[k] = record->sums[k];
    const double at_zero = power_of_two(student - row_student), at_one = power_of_two(teacher - row_teacher);
    const bool both = student > -INFINITY && teacher > -INFINITY;
    const double delta = both ? static_cast<double>(teacher - student) - (row_teacher - row_student) : 0.0;
    double* out = state.by_rank[lane];
    move_moments(s, at_zero, delta, out);
    move_moments(s + 4, at_one, delta, out + 4);
    out[8] = s[8] * at_zero;
    out[9] = s[9] * at_one;
    state.ends_mass[lane][0] = out[0] + out[8];
    state.ends_mass[lane][1] = out[4];
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
  if (lane < EndsSweep::kSums) {
    double total = 0.0;
    for (int r = 0; r < cluster.ranks; ++r) total += state.by_rank[r][lane];
    state.total[lane] = total;
  }
  __syncwarp();
}

// Warp 0: the same of an exact sweep, whose frame all blocks share.
template <int kWarps>
__device__ __forceinline__ void gather_exact(BlockState<kWarps>& state, const Cluster& cluster, int slot, int lane) {
  const int count = state.form == Form::kStable ? StableSweep::kSums : DirectSweep::kSums;
  if (lane < cluster.ranks) {
    const Record* record = cluster.peer(&state.record[slot], lane);
#pragma unroll
    for (int k = 0; k < StableSweep::kSums; ++k) {
      if (k < count) state.by_rank[lane][k] = record->sums[k];
    }
  }
  __syncwarp();
  if (lane < count) {
    double total = 0.0;
    for (int r = 0; r < cluster.ranks; ++r) total += state.by_rank[r][lane];
    state.total[lane] = total;
  }
  __syncwarp();
}

// One thread: the frame of the sweep that the solver asks for, or the answer it has found.
template <int kWarps>
__device__ __forceinline__ void follow_solver(BlockState<kWarps>& state, float scale) {
  Answer& answer = state.answer;
  const double inverse_temperature = scale * kLn2, ref_student = state.shift_of_row[0] * kLn2,
               ref_teacher = state.shift_of_row[1] * kLn2;
  if (state.solver.next()) {
    const SweepPlan plan = plan_sweep(state.solver, state.zero_mass, state.zero_mean, 0.0, kStableBelow);
    answer.sweeps = state.solver.sweeps();
    state.action = plan.in_range ? Action::kSweep : Action::kWide;
    state.form = plan.form;
    const double gap = ref_teacher - ref_student;  // D = (b - a) / T - gap
    ExactFrame& frame = state.frame;
    frame.scale = scale;
    frame.centre = static_cast<float>((plan.centre + gap) / inverse_temperature);
    frame.tilt = static_cast<float>(plan.beta * inverse_temperature);
    frame.offset = static_cast<float>((plan.centre + gap) * plan.beta);
    // The centre that the rounded numbers of the frame amount to.
    state.centre = (plan.form == Form::kStable ? static_cast<double>(frame.offset) / plan.beta
                                               : frame.centre * inverse_temperature) -
                   gap;
    const float kappa = plan.form == Form::kDirect ? floorf(static_cast<float>(plan.kappa) * kLog2e) : 0.0f;
    frame.shift = state.shift_of_row[0] + kappa;
    state.kappa = kappa * kLn2;
    frame.slope = plan.beta * scale;
    return;
  }
  state.action = Action::kDone;
  answer.status = state.solver.status();
  answer.beta = state.solver.beta();
  answer.kl = state.solver.kl();
  answer.sweeps = state.solver.sweeps();
  if (answer.status == Status::kFault) return;
  answer.inverse_temperature = inverse_temperature;
  answer.reference_student = ref_student;
  answer.reference_teacher = ref_teacher;
  answer.max_student = state.extreme_of_row[0];
  answer.max_teacher = state.extreme_of_row[1];
  if (answer.status == Status::kInterior) {
    const Node& swept = state.solver.swept();
    const double h = state.solver.shift();
    answer.log_norm =
        std::log(state.zero_mass) + swept.log_gain + h * (swept.mean + h * (0.5 * swept.k2 + h * swept.k3 / 6.0));
    state.frame.slope = answer.beta * scale;  // for the weights of the draw
  } else {
    answer.log_norm = answer.status == Status::kStudent ? answer.log_student : std::log(state.one_mass);
  }
}

// One thread, after gather_ends: begins the search. False where float32 exponents do not reach.
template <int kWarps>
__device__ __forceinline__ bool begin_search(BlockState<kWarps>& state, float scale, double epsilon) {
  const float max_student = state.extreme_of_row[0], max_teacher = state.extreme_of_row[1];
  const float high = state.extreme_of_row[2], low = state.extreme_of_row[3];
  const double zero = state.total[0], one = state.total[4];
  const double inverse_temperature = scale * kLn2;
  const bool disjoint = !(low <= high);
  Start start;
  start.nodes = 2;
  start.fault =
      !(max_student < INFINITY && max_teacher < INFINITY && max_student > -INFINITY && max_teacher > -INFINITY);
  start.range = (static_cast<double>(high) - low) * inverse_temperature;
  state.answer.sweeps = 1;
  state.frame = ExactFrame{};
  const bool reachable = fabsf(state.shift_of_row[0]) <= kLargestShiftOfRow &&
                         fabsf(state.shift_of_row[1]) <= kLargestShiftOfRow &&
                         (disjoint || (start.range <= kLargestRange && zero > 1e-30 && one > 1e-30));
  if (!start.fault && !reachable) return false;
  start.phi = disjoint ? INFINITY : log1p(state.total[8] / zero);
  start.uncertainty = 8e-6 + 4e-7 * start.range;
  const double log_zero = std::log(zero);
  double s[8], unit = 1.0;
#pragma unroll
  for (int k = 0; k < 4; ++k, unit *= kLn2) {
    s[k] = state.total[k] * unit;
    s[k + 4] = state.total[k + 4] * unit;
  }
  start.node[0] = node_of_moments(0.0, s, 0.0, log_zero);
  start.node[1] = node_of_moments(1.0, s + 4, 0.0, log_zero);
  state.zero_mass = zero;
  state.one_mass = one;
  state.zero_mean = start.node[0].mean;
  state.answer.log_student = std::log(zero + state.total[8]);
  state.answer.log_teacher = std::log(one + state.total[9]);
  new (&state.solver) Solver<float>(epsilon, kMaxSweeps, false);
  state.solver.begin(start);
  return true;
}

// One thread, after gather_exact: tells the search what the sweep found.
template <int kWarps>
__device__ __forceinline__ void continue_search(BlockState<kWarps>& state, float scale) {
  const double beta = state.solver.swept_beta();
  Node node;
  if (state.form == Form::kStable) {
    node = node_of_stable_sums(beta, state.total);
  } else {
    double s[4], unit = 1.0;
#pragma unroll
    for (int k = 0; k < 4; ++k, unit *= scale * kLn2) s[k] = state.total[k] * unit;
    node = node_of_moments(beta, s, state.kappa, std::log(state.zero_mass));
  }
  node.mean += state.centre;
  node.log_gain += beta * state.centre;
  state.solver.update(&node, 1, true);
}

// One thread: what the row's blocks do next.
template <int kWarps>
__device__ __forceinline__ void decide(BlockState<kWarps>& state, bool first, float scale, double epsilon) {
  if (!first) {
    continue_search(state, scale);
  } else if (!begin_search(state, scale, epsilon)) {
    state.action = Action::kWide;
    return;
  }
  follow_solver(state, scale);
}

}  // namespace trb::cuda
