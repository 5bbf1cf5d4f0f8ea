// Searches for beta on one warp, after each sweep: the method and the contract of csrc/solver/solver.h, without fans.
//
// All lanes of warp 0 run it with the same numbers, so that nothing passes through shared memory, and the lanes share
// what can be done side by side. Double precision is left where the contract needs it: f, which is a small difference
// of large numbers, and what is compared with the headroom.
#pragma once

#include "../../solver/solver.h"
#include "interpolation.cuh"

namespace trb::cuda {

constexpr int kMaxSweeps = 40;  // sweeps on chip are cheap, and the bisection of float32 numbers ends before

// f and the cumulants of D, less the center of its sweep, at a beta that was swept.
struct SweptNode {
  float beta;
  double f, log_gain, mean;
  float k2, k3;
};

// An end of the bracket, which only steers.
struct BracketEnd {
  LogNode log;
  float f, log_gain, mean;

  BracketEnd() = default;
  __device__ __forceinline__ BracketEnd(const SweptNode& node, double center)
      : log(log_node(node.beta, node.f, node.k2, node.k3)),
        f(static_cast<float>(node.f)),
        log_gain(static_cast<float>(node.log_gain + node.beta * center)),
        mean(static_cast<float>(node.mean + center)) {}
};

// All lanes of a warp: the end that `lane` has, at `beta`.
__device__ __forceinline__ BracketEnd from_lane(const BracketEnd& end, float beta, int lane) {
  BracketEnd found;
  found.log.beta = beta;
  found.log.l = __shfl_sync(kAllLanes, end.log.l, lane);
  found.log.l1 = __shfl_sync(kAllLanes, end.log.l1, lane);
  found.log.l2 = __shfl_sync(kAllLanes, end.log.l2, lane);
  found.f = __shfl_sync(kAllLanes, end.f, lane);
  found.log_gain = __shfl_sync(kAllLanes, end.log_gain, lane);
  found.mean = __shfl_sync(kAllLanes, end.mean, lane);
  return found;
}

// What the first sweep says of a row. In units of log 2, x = a scale - shift_student, and likewise y.
struct alignas(16) RowFrame {
  float scale;  // log2(e) / T
  float shift_student, shift_teacher;
  float max_student, max_teacher;  // NaN if some logit is NaN
  float range;                     // R, nats
  float log_zero, zero_mean;       // the log of the sum of e^x over the common support, and the mean of D under mu_0
};

// What the search has found: an answer at `shift` from the beta that was swept last.
struct Found {
  Status status;
  float beta, shift;
  double kl;
};

// What follows a sweep.
enum class Next { kFinished, kSweep, kPropose };  // kPropose: a sweep at a beta that is not yet chosen

// The search between two sweeps. Its size is a multiple of 16 bytes, without padding, because it is loaded as a whole.
struct alignas(16) Search {
  BracketEnd low, high;
  double headroom, phi;
  float beta;   // to be swept next, or the last one that was
  float best;   // the largest beta that a sweep found feasible
  float width;  // of the bracket three sweeps ago
  int32_t sweeps, round;
  int32_t confirming;  // whether the sweep only confirms `best`

  // Takes in f at beta = 1 from the first sweep, which may be wrong by `doubt`. `phi`, both ends and `root`, that of
  // their interpolation, are set.
  __device__ __forceinline__ Next begin(double epsilon, double f_at_one, double doubt, float root, Found& found) {
    headroom = epsilon - phi;
    best = 0.0f;
    width = 1.0f;
    sweeps = round = 1;
    confirming = 0;
    const bool valid = epsilon >= 0.0, some = (epsilon > 0.0) & (headroom > 0.0);
    // An exact sweep decides between nearly equal models, whose divergence is lost in the rounding of the first sweep.
    const bool teacher = some & ((headroom == INFINITY) | ((f_at_one <= headroom - doubt) & (f_at_one >= 1e-4)));
    found = {!valid    ? Status::kFault
             : !some   ? Status::kStudent
             : teacher ? Status::kTeacher
                       : Status::kInterior,
             teacher ? 1.0f : 0.0f, 0.0f, select(teacher, phi + f_at_one, 0.0)};
    // A node at beta = 1 that may be feasible is swept exactly before any other beta.
    const float within = select((root > 0.0f) & (root < 1.0f), root, halfway(0.0f, 1.0f));
    beta = select(f_at_one <= headroom + doubt, 1.0f, within);
    return teacher | !some ? Next::kFinished : Next::kSweep;
  }

  // Takes in the node of an exact sweep. `room` is what its f leaves of the headroom, and decides.
  __device__ __forceinline__ Next update(const SweptNode& node, float room, double center, float range, Found& found) {
    ++sweeps;
    // 1. A feasible node at beta = 1, or a sweep that only had to confirm a beta, ends the search. So does the final
    // shift, and a feasible node within the tolerance.
    const float tolerance = static_cast<float>(headroom * kTolerance);
    const bool searching = confirming == 0, feasible = room >= 0.0f,
               confirmed = feasible & (!searching | (beta == 1.0f));
    const bool ends = confirmed | (searching & feasible & (room <= tolerance));
    const FinalShift last = shift_to_target(node, room, tolerance, range, searching & !confirmed);
    if (ends | last.reaches) {
      found = {Status::kInterior, select(last.reaches, last.beta, beta), select(last.reaches, last.shift, 0.0f),
               phi + node.f + select(last.reaches, last.gain, 0.0f)};
      return Next::kFinished;
    }
    if (!searching) return become_student(found);
    // 2. Otherwise the node narrows the bracket.
    if (feasible & (beta > low.log.beta)) {
      low = BracketEnd(node, center);
      best = beta;
    }
    if (!feasible & (beta < high.log.beta) & (beta > low.log.beta)) high = BracketEnd(node, center);
    return Next::kPropose;
  }

  // Chooses the next beta. All lanes of a warp call it.
  __device__ __forceinline__ Next propose(int lane, Found& found) {
    const float least = low.log.beta, most = high.log.beta, above = __int_as_float(__float_as_int(least) + 1);
    // 1. When the bracket is empty or one sweep is left, that sweep goes to the largest feasible beta that was seen,
    // because sampling needs the sums at the answer.
    if ((above >= most) | (sweeps + 1 >= kMaxSweeps)) {
      if (best == 0.0f) return become_student(found);
      confirming = 1;
      beta = best;
      return Next::kSweep;
    }
    // 2. The candidate is the root of the interpolation, or halves the bracket if there is none or progress is slow.
    const float target = static_cast<float>(headroom * (1.0 - 0.5 * kTolerance));
    float candidate = root_of_interpolation(low.log, high.log, target, lane);
    const bool third = ++round == 3, slow = third & (most - least > 0.25f * width);
    width = third ? most - least : width;
    round = third ? 0 : round;
    if (slow | !((candidate > least) & (candidate < most))) candidate = halfway(least, most);
    beta = select(candidate > least, candidate, above);
    return Next::kSweep;
  }

 private:
  static __device__ __forceinline__ Next become_student(Found& found) {
    found = {Status::kStudent, 0.0f, 0.0f, 0.0};
    return Next::kFinished;
  }

  // The middle of the bracket: of its exponents while they differ, then of its values.
  static __device__ __forceinline__ float halfway(float low, float high) {
    if (low == 0.0f) return high * 0.0625f;
    return high > 4.0f * low ? ex2(0.5f * (log2_of(low) + log2_of(high))) : 0.5f * low + 0.5f * high;
  }

  struct FinalShift {
    float shift, beta, gain;
    bool reaches;
  };

  // Moves from an exact node to where the cubic of f meets the middle of the tolerance, if it `may`, and finds whether
  // the cubic is exact enough there (solver.h). What `room` decides is computed last.
  __device__ __forceinline__ FinalShift shift_to_target(const SweptNode& node, float room, float tolerance, float range,
                                                        bool may) const {
    const float k2 = node.k2, k3 = node.k3, f1 = node.beta * k2, f2 = fmaf(node.beta, k3, k2);
    const float half = 0.5f * tolerance, per_f1 = reciprocal(f1), bend_of = 0.5f * f2 * per_f1;
    constexpr float kGrowth = 1.052f;  // e^reach at the largest shift
    const float error_of = k2 * (range * range) * (kGrowth / 6);
    const auto rise = [&](float h) { return h * fmaf(h, fmaf(h, k3 * (1.0f / 3), 0.5f * f2), f1); };
    // The root of the parabola by its series, and a step of Newton's method with the slope at the first term.
    const float target = room - half, first = target * per_f1, bend = bend_of * first;
    const float per_slope = reciprocal(fmaf(first, fmaf(first, k3, f2), f1));
    float h = fmaf(first * bend, fmaf(2.0f, bend, -1.0f), first);
    h = fmaf(target - rise(h), per_slope, h);
    const float moved = node.beta + h;
    h = moved - node.beta;
    const float size = fabsf(h), gain = rise(h), error = (node.beta + size) * size * (size * size * error_of);
    const bool near = may & (size * range <= static_cast<float>(kLargestShift)) & (moved > 0.0f) & (moved <= 1.0f);
    const bool reaches = near & (fabsf(gain - target) + error <= half);
    return {h, moved, gain, reaches};
  }
};
static_assert(sizeof(Search) == 96 && sizeof(RowFrame) == 32, "no padding");

}  // namespace trb::cuda
