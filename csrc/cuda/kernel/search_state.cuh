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
  double f, log_gain, mean, k2;
  float k3;
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

// All lanes of a warp: the end that `lane` has.
__device__ __forceinline__ BracketEnd from_lane(const BracketEnd& end, int lane) {
  BracketEnd found;
  found.log.beta = __shfl_sync(kAllLanes, end.log.beta, lane);
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

  // Takes in the node of an exact sweep.
  __device__ __forceinline__ Next update(const SweptNode& node, double center, float range, Found& found) {
    ++sweeps;
    // 1. A feasible node at beta = 1, or a sweep that only had to confirm a beta, ends the search. So does the final
    // shift, and a feasible node within the tolerance.
    const bool feasible = node.f <= headroom, confirmed = feasible & ((confirming != 0) | (beta == 1.0f));
    const bool close = feasible & (node.f >= headroom * (1.0 - kTolerance));
    float shift, gain;
    const bool shifted = !confirmed & shift_to_target(node, range, &shift, &gain);
    if (confirmed | ((confirming == 0) & (shifted | close))) {
      found = {Status::kInterior, select(shifted, beta + shift, beta), select(shifted, shift, 0.0f),
               phi + node.f + select(shifted, gain, 0.0f)};
      return Next::kFinished;
    }
    if (confirming != 0) return become_student(found);
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

  // Moves from an exact node to where the cubic of f meets the middle of the tolerance. Returns whether the cubic is
  // exact enough there (solver.h). Only the distance to the headroom needs double precision.
  __device__ __forceinline__ bool shift_to_target(const SweptNode& node, float range, float* shift, float* gain) const {
    const float room = static_cast<float>(headroom - node.f), tolerance = static_cast<float>(headroom * kTolerance);
    const float k2 = static_cast<float>(node.k2), f1 = node.beta * k2, f2 = fmaf(node.beta, node.k3, k2);
    const float target = room - 0.5f * tolerance, k3 = node.k3;
    const auto rise = [&](float h) { return h * fmaf(h, fmaf(h, k3 * (1.0f / 3), 0.5f * f2), f1); };
    // The root of the parabola by its series, and a step of Newton's method.
    const float per_f1 = reciprocal(f1), first = target * per_f1, bend = 0.5f * f2 * per_f1 * first;
    float h = fmaf(first * bend, fmaf(2.0f, bend, -1.0f), first);
    h += (target - rise(h)) * reciprocal(fmaf(h, fmaf(h, k3, f2), f1));
    const float moved = node.beta + h;
    h = moved - node.beta;
    const float size = fabsf(h), reach = size * range, by = rise(h);
    constexpr float kGrowth = 1.052f;  // e^reach at the largest shift
    const float error = (node.beta + size) * k2 * range * reach * size * size * (kGrowth / 6);
    *shift = h;
    *gain = by;
    return (reach <= static_cast<float>(kLargestShift)) & (moved > 0.0f) & (moved <= 1.0f) &
           (error <= 0.5f * tolerance) & (by + error <= room) & (by - error >= room - tolerance);
  }
};
static_assert(sizeof(Search) == 96 && sizeof(RowFrame) == 32, "no padding");

}  // namespace trb::cuda
