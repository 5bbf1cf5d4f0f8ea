// Solves the k + 1 outcomes of a row in double precision, by one warp. The mathematics is that of
// csrc/cpu/double_row.cpp: a lane adds its outcomes one after another, then the lanes are merged in a fixed tree.
#pragma once

#include <new>

#include "state.cuh"

namespace trb::cuda {

// All lanes: takes the maxima, the teacher's mass and the student's rest together, and writes what the outcomes need to
// the state. Returns false if the row is at fault.
__device__ __forceinline__ bool gather_outcomes(const TopKRow& row) {
  // 1. The largest logit of the row.
  TopKState& state = row.state;
  const int lane = row.lane;
  const float largest = max_over_lanes(lane < kTopKWarps ? state.warp_max[lane] : -INFINITY);
  if (state.fault != 0 || !(largest < INFINITY) || largest == -INFINITY) return false;
  if (lane == 0) state.max_student = largest;
  __syncwarp();
  // 2. The teacher's listed mass, and the student's.
  double mass = 0.0, listed = 0.0, student = 0.0;
#pragma unroll 1
  for (int64_t place = lane; place < row.args.teacher.k; place += kWarp) {
    const int64_t token = row.id(place);
    if (token < 0) continue;
    mass += ::exp(static_cast<double>(row.args.teacher.log_prob(state.task.teacher_row, place)));
    student += ::exp(row.in_frame(token));
    listed += 1.0;
  }
  mass = sum_over_lanes(mass);
  student = sum_over_lanes(student);
  const int64_t count = static_cast<int64_t>(sum_over_lanes(listed));
  if (mass_at_fault(mass, count, row.student.vocab)) return false;
  // 3. The student's rest, in the frame of its own maximum, because it may lie far below the row's.
  const int64_t blocks = block_count(row.student.vocab);
  float peak = -INFINITY;
  for (int64_t block = lane; block < blocks; block += kWarp) peak = fmaxf(peak, row.weights[block].peak);
  peak = max_over_lanes(peak);
  double sum = 0.0;
#pragma unroll 1
  for (int64_t block = lane; block < blocks; block += kWarp) {
    const BlockWeight weight = row.weights[block];
    if (weight.mass > 0.0f) {
      sum += weight.mass * ::exp((static_cast<double>(weight.peak) - peak) * state.temperature.inverse);
    }
  }
  sum = sum_over_lanes(sum);
  const double log_rest =
      sum > 0.0 ? (static_cast<double>(peak) - largest) * state.temperature.inverse + ::log(sum) : -INFINITY;
  // 4. The teacher's rest.
  const double log_of_teacher =
      log_rest_of(mass, log_rest - ::log(student + ::exp(log_rest)), count == row.student.vocab);
  if (lane == 0) {
    state.rest_peak = peak;
    state.log_rest = ::log(sum);
    state.log_total = ::log(mass + ::exp(log_of_teacher));
    state.rest = {log_rest, log_of_teacher - state.log_total};
    state.origin = {0.0, 0.0};  // from which the first solve is
  }
  __syncwarp();
  return true;
}

enum class Outcomes { kCommon, kStudent, kTeacher };  // those that both models have, or one of them

// All lanes: leaves in the state the distribution proportional to e^x, e^y or e^{t_beta}.
__device__ __forceinline__ void sweep_outcomes(const TopKRow& row, Outcomes support, double beta) {
  Tilt own;
  double min_d = INFINITY, max_d = -INFINITY;
#pragma unroll 1
  for (int64_t place = row.lane; place <= row.args.teacher.k; place += kWarp) {
    const Outcome of = row.outcome(place);
    const double x = of.student - row.state.origin.student, y = of.teacher - row.state.origin.teacher;
    const bool in_student = x > -INFINITY, in_teacher = y > -INFINITY, common = in_student && in_teacher;
    if (!(support == Outcomes::kCommon ? common : support == Outcomes::kStudent ? in_student : in_teacher)) continue;
    const double t = support == Outcomes::kStudent ? x : support == Outcomes::kTeacher ? y : tilted_logit(x, y, beta);
    own.add(t, common ? y - x : 0.0, common ? x : 0.0);
    if (common) {
      min_d = fmin(min_d, y - x);
      max_d = fmax(max_d, y - x);
    }
  }
#pragma unroll 1
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Tilt other{{from_lane_above(own.weight.peak, distance), from_lane_above(own.weight.mass, distance)},
                     from_lane_above(own.mean, distance),
                     from_lane_above(own.m2, distance),
                     from_lane_above(own.m3, distance),
                     from_lane_above(own.below, distance),
                     from_lane_above(own.x, distance)};
    min_d = fmin(min_d, from_lane_above(min_d, distance));
    max_d = fmax(max_d, from_lane_above(max_d, distance));
    own.merge(other);
  }
  __syncwarp();  // because other lanes have read what lane 0 writes from here on
  if (row.lane == 0) {
    row.state.tilt = own;
    row.state.min_d = min_d;
    row.state.max_d = max_d;
  }
}

constexpr int kOutcomeEnds = 4;  // mu_0, mu_1, the student, the teacher

// One thread: takes in the sums of sweep number `sweep`, and lets the solver continue once the ends are known. Not
// inlined, to save the kernel's registers.
__device__ __noinline__ void continue_search(TopKState& state, int sweep, double beta) {
  Ends& ends = state.ends;
  if (sweep == 0) {
    ends = Ends{};
    ends.zero = state.tilt;
    ends.min_d = state.min_d;
    ends.max_d = state.max_d;
  } else if (sweep == 1) {
    ends.one = state.tilt;
  } else if (sweep == 2) {
    ends.student = state.tilt.weight;
  } else if (sweep == 3) {
    ends.teacher = state.tilt.weight;
    new (&state.solver) Solver(state.epsilon, kMaxDoubleSweeps, false);
    state.start = start_of(ends);  // in shared memory, because it is indexed by a number that is known only at run time
    state.solver.begin(state.start);
  } else {
    const Node node = node_of(beta, state.tilt, ends.zero);
    state.solver.update(&node, 1, true);
  }
  if (sweep >= kOutcomeEnds - 1) state.searching = state.solver.next();
}

// All lanes: whether the row must be solved again, from the origin that is then set (csrc/cpu/double_row.h says why):
// the likeliest outcome of mu, if it lies far away; or, if the answer is pi_S, the first one and without a budget.
// `origins` have been tried.
__device__ __forceinline__ bool set_next_origin(const TopKRow& row, int origins) {
  // 1. The common outcome with the largest t_beta.
  TopKState& state = row.state;
  const Outcome origin = state.origin;
  double most = -INFINITY;
  Outcome likeliest{};
#pragma unroll 1
  for (int64_t place = row.lane; place <= row.args.teacher.k; place += kWarp) {
    const Outcome of = row.outcome(place);
    if (!(of.student > -INFINITY && of.teacher > -INFINITY)) continue;
    const double t = tilted_logit(of.student - origin.student, of.teacher - origin.teacher, state.beta);
    likeliest = t > most ? of : likeliest;
    most = t > most ? t : most;
  }
#pragma unroll 1
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const double t = __shfl_xor_sync(kAllLanes, most, distance);
    const Outcome of{__shfl_xor_sync(kAllLanes, likeliest.student, distance),
                     __shfl_xor_sync(kAllLanes, likeliest.teacher, distance)};
    // Of equal ones that of the lower lane, so that all lanes choose the same.
    const bool takes = t > most || (t == most && (row.lane & distance) != 0);
    likeliest = takes ? of : likeliest;
    most = takes ? t : most;
  }
  // 2. Whether it is far away.
  const double x = likeliest.student - origin.student, y = likeliest.teacher - origin.teacher;
  const bool far =
      most > -INFINITY && fmax(fabs(x), fabs(y)) > kFarthestFromOrigin && origins < kMostOrigins && state.epsilon > 0.0;
  const bool as_student = !far && state.status == Status::kStudent && origin.student != 0.0;
  const bool again = state.status != Status::kFault && (far || as_student);
  __syncwarp();
  if (again && row.lane == 0) {
    state.origin = far ? likeliest : Outcome{0.0, 0.0};
    if (as_student) state.epsilon = 0.0;
    state.searching = true;
  }
  __syncwarp();
  return again;
}

// All lanes: finds beta and writes the answer to the state. The sweep of the row must have left no fault.
__device__ __forceinline__ void solve_outcomes(const TopKRow& row) {
  TopKState& state = row.state;
  int origins = 0;
#pragma unroll 1
  do {
    ++origins;
#pragma unroll 1
    for (int sweep = 0; state.searching; ++sweep) {
      const Outcomes support = sweep == 2 ? Outcomes::kStudent : sweep == 3 ? Outcomes::kTeacher : Outcomes::kCommon;
      const double beta = sweep == 1 ? 1.0 : sweep < kOutcomeEnds ? 0.0 : state.solver.swept_beta();
      sweep_outcomes(row, support, beta);
      if (row.lane == 0) continue_search(state, sweep, beta);
      __syncwarp();
    }
    if (row.lane == 0) {
      const Solver& solver = state.solver;
      state.status = solver.status();
      state.beta = solver.beta();
      state.kl = solver.kl();
      if (origins == 1) state.log_student = state.ends.student.log();
      state.log_norm = solver.status() == Status::kStudent   ? state.ends.student.log()
                       : solver.status() == Status::kTeacher ? state.ends.one.weight.log()
                                                             : state.tilt.log_mass_shifted_by(solver.shift());
    }
    __syncwarp();
  } while (set_next_origin(row, origins));
  if (row.lane == 0) {
    const double log_mu = row.log_mu(state.rest);
    state.log_mu_of_rest = log_mu;
    state.rest_ratio = log_mu > -INFINITY ? log_mu - (state.rest.student - state.log_student) : -INFINITY;
  }
  __syncwarp();
}

}  // namespace trb::cuda
