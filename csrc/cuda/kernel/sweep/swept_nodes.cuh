// Makes nodes of f from the sums of a sweep, and converts between the units of sums, logits and nats.
#pragma once

#include "../block_state.cuh"

namespace trb::cuda {

// 2^n for n <= 0; 0 below the smallest normal number.
__device__ __forceinline__ double power_of_two(int n) { return __hiloint2double((max(n, -1023) + 1023) << 20, 0); }
__device__ __forceinline__ float float_power_of_two(int n) { return __int_as_float((max(n, -127) + 127) << 23); }

// The frame of a section's first sweep, from its extremes. A section without weight adds nothing in any frame, but its
// frame must be finite.
__device__ __forceinline__ EndsSweep::Frame ends_frame(const SliceFrame& section, float scale) {
  const float student = from_ordered(section.max_student) * scale, teacher = from_ordered(section.max_teacher) * scale;
  return {scale, select(student > kNoWeight, ceilf(student), 0.0f), select(teacher > kNoWeight, ceilf(teacher), 0.0f)};
}

// Rounding may make f slightly negative. A NaN must stay a NaN, which counts as infeasible.
__device__ __forceinline__ double not_negative(double f) { return f < 0.0 ? 0.0 : f; }

// Converts a row's numbers: logits to nats, and b - a to D = (b - a) / T - gap. `base` is the constant that
// `difference` (sweep_terms.cuh) leaves out of b - a for float32 logits.
struct Units {
  double inverse_temperature, base, gap;

  template <typename T>
  static __device__ __forceinline__ Units of(const RowFrame& row) {
    return {row.scale * kLn2, std::is_same_v<T, float> ? static_cast<double>(row.max_teacher) - row.max_student : 0.0,
            (static_cast<double>(row.shift_teacher) - row.shift_student) * kLn2};
  }
  // D at the difference `center`.
  __device__ __forceinline__ double of_difference(double center) const {
    return (center + base) * inverse_temperature - gap;
  }
};

// The difference at which D has about this value, in nats. The shifts are taken off the maxima first, because the
// models may be far apart.
template <typename T>
__device__ __forceinline__ float difference_at(const RowFrame& row, float nats) {
  const bool relative = std::is_same_v<T, float>;
  const float student = relative ? fmaf(-row.max_student, row.scale, row.shift_student) : row.shift_student;
  const float teacher = relative ? fmaf(-row.max_teacher, row.scale, row.shift_teacher) : row.shift_teacher;
  return fmaf(nats, kLog2eFloat, teacher - student) * reciprocal(row.scale);
}

// The cumulants of D from moments about 0 of numbers that are D in units of `unit`, divided by the mass.
__device__ __forceinline__ void cumulants_of(float mean, float second, float third, float unit, float* k2, float* k3) {
  const float square = mean * mean, spread = fmaf(-mean, mean, second);
  *k2 = spread > 0.0f ? spread * (unit * unit) : 0.0f;
  *k3 = fmaf(-mean, fmaf(3.0f, second, -2.0f * square), third) * (unit * unit * unit);
}

// A node, and what its f leaves of the headroom.
struct JudgedNode {
  SweptNode node;
  float room;
};

// The node of a direct sweep from its sums, of which each lane has one. `log_of_factor` is the logarithm of what the
// weights leave out, less that of the mass at beta = 0. The parts of f are added in an order in which the room is ready
// soonest.
__device__ __forceinline__ JudgedNode node_of_direct_sums(float beta, double of_lane, double unit, double log_of_factor,
                                                          double headroom) {
  const double mass = __shfl_sync(kAllLanes, of_lane, 0), first = __shfl_sync(kAllLanes, of_lane, 1);
  const float as_float = static_cast<float>(of_lane), inverse = reciprocal(__shfl_sync(kAllLanes, as_float, 0));
  const float second = __shfl_sync(kAllLanes, as_float, 2), third = __shfl_sync(kAllLanes, as_float, 3);
  const LogParts log = log_of(mass);
  const double mean = first * reciprocal(mass) * unit, tilted = beta * mean;
  SweptNode node{beta, 0.0, log.add_to(log_of_factor), mean};
  node.f = not_negative(tilted - node.log_gain);
  cumulants_of(static_cast<float>(first) * inverse, second * inverse, third * inverse, static_cast<float>(unit),
               &node.k2, &node.k3);
  return {node, log.add_to_as_float(headroom + log_of_factor - tilted)};
}

// The node of a stable sweep from its sums, of which each lane has one: csrc/solver/cumulants.h, with 1 / (1 + y + W)
// as p / (p + y + W) for sums that are not divided.
__device__ __forceinline__ JudgedNode node_of_stable_sums(float beta, double of_lane, double headroom) {
  double s[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) s[k] = __shfl_sync(kAllLanes, of_lane, k);
  const float as_float = static_cast<float>(of_lane), second = __shfl_sync(kAllLanes, as_float, 4),
              third = __shfl_sync(kAllLanes, as_float, 5);
  const double growth = s[1] + s[2], mass = s[0] + growth, per_mass = reciprocal(mass);
  const float per_beta = reciprocal(beta), per_mass_float = static_cast<float>(per_mass);
  const double v1 = (s[3] + s[1]) * per_mass, log_gain = log_of_ratio(mass, s[0], growth).add_to(0.0);
  SweptNode node{beta, not_negative(v1 - log_gain), log_gain, v1 * per_beta};
  cumulants_of(static_cast<float>(v1), second * per_mass_float, third * per_mass_float, per_beta, &node.k2, &node.k3);
  return {node, static_cast<float>(headroom - node.f)};
}

// Adds up sum `own` of an exact sweep over the sections, which share its frame, in a fixed tree.
template <int kWarps>
__device__ __forceinline__ double sum_of_lane(const BlockState<kWarps>& state, int slot, int own) {
  double part[kMostSections];
#pragma unroll
  for (int s = 0; s < kMostSections; ++s) part[s] = state.record[slot][s].sums[own];
#pragma unroll
  for (int apart = 1; apart < kMostSections; apart *= 2) {
#pragma unroll
    for (int s = 0; s < kMostSections; s += 2 * apart) part[s] += part[s + apart];
  }
  return part[0];
}

}  // namespace trb::cuda
