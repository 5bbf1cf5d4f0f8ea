// Defines maxima, sums and exchanges over the 32 lanes of a warp. All lanes of the warp call each function.
//
// Every sum has a fixed order, so that equal inputs give equal bits on every run.
#pragma once

#include <cstdint>

namespace trb::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// An integer that orders as the float does. A NaN of positive sign, which max.NaN gives, is the largest.
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

__device__ __forceinline__ int64_t max_over_lanes(int64_t value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

__device__ __forceinline__ double sum_over_lanes(double value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// Sorts two numbers into the one that a lane keeps and the one that it sends. It is written in asm, because the
// compiler makes a select of addresses of ?: and moves the array that they point into to local memory.
__device__ __forceinline__ void split(bool upper, float low, float high, float* kept, float* sent) {
  asm("{ .reg .pred p; setp.ne.s32 p, %4, 0; selp.f32 %0, %3, %2, p; selp.f32 %1, %2, %3, p; }"
      : "=f"(*kept), "=f"(*sent)
      : "f"(low), "f"(high), "r"(static_cast<int>(upper)));
}

// yes ? a : b with both computed before, of which the compiler makes a select and no branch.
template <typename U>
__device__ __forceinline__ U select(bool yes, U a, U b) {
  return yes ? a : b;
}

// Stores a number in shared memory if `yes`, without a branch.
__device__ __forceinline__ void store_if(bool yes, float* to, float value) {
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p st.shared.f32 [%0], %1; }" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "f"(value), "r"(static_cast<int>(yes))
               : "memory");
}
__device__ __forceinline__ void store_if(bool yes, double* to, double value) {
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p st.shared.f64 [%0], %1; }" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "d"(value), "r"(static_cast<int>(yes))
               : "memory");
}

// Sums kSlots numbers over the lanes. Each level of the recursion exchanges half of the numbers that are left, so that
// 16 numbers take 16 shuffles instead of 80. Lane l returns the total of slot l / (32 / kSlots).
template <int kSlots, int kDistance = kWarp / 2>
__device__ __forceinline__ float totals_over_lanes(const float (&s)[kSlots], int lane) {
  if constexpr (kSlots == 1) {
    float total = s[0];
#pragma unroll
    for (int distance = kDistance; distance > 0; distance /= 2) total += __shfl_xor_sync(kAllLanes, total, distance);
    return total;
  } else {
    const bool upper = (lane & kDistance) != 0;
    float half[kSlots / 2];
#pragma unroll
    for (int i = 0; i < kSlots / 2; ++i) {
      float kept, sent;
      split(upper, s[i], s[i + kSlots / 2], &kept, &sent);
      half[i] = kept + __shfl_xor_sync(kAllLanes, sent, kDistance);
    }
    return totals_over_lanes<kSlots / 2, kDistance / 2>(half, lane);
  }
}

// The maximum over this lane and all lower ones.
__device__ __forceinline__ int64_t max_up_to_lane(int64_t value, int lane) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int64_t before = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value = max(value, before);
  }
  return value;
}

// The sum over this lane and all lower ones.
__device__ __forceinline__ double sum_up_to_lane(double value, int lane) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const double before = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += before;
  }
  return value;
}

// The value of the lane that lies `distance` above.
__device__ __forceinline__ double from_lane_above(double value, int distance) {
  return __shfl_down_sync(kAllLanes, value, distance);
}

// The vector of the next lane.
__device__ __forceinline__ uint4 from_lane_above(uint4 v) {
  return make_uint4(__shfl_down_sync(kAllLanes, v.x, 1), __shfl_down_sync(kAllLanes, v.y, 1),
                    __shfl_down_sync(kAllLanes, v.z, 1), __shfl_down_sync(kAllLanes, v.w, 1));
}

__device__ __forceinline__ uint4 from_first_lane(uint4 v) {
  return make_uint4(__shfl_sync(kAllLanes, v.x, 0), __shfl_sync(kAllLanes, v.y, 0), __shfl_sync(kAllLanes, v.z, 0),
                    __shfl_sync(kAllLanes, v.w, 0));
}

}  // namespace trb::cuda
