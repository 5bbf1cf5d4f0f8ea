// Measures the latencies, in cycles, of the instructions of a decision of the kernels: chains in which each instruction
// waits for the one before it, timed by one warp on an otherwise idle multiprocessor. Some links contain one more cheap
// instruction, an addition or an address, which their comments name.
#pragma once

#include "probe.cuh"

namespace chip {

constexpr const char* kLatencies[] = {"dfma",        "double_division", "double_log", "ex2",         "shuffle",
                                      "shared_load", "redux",           "ffma",       "double_cast", "syncthreads"};
constexpr int kLatencyCount = sizeof(kLatencies) / sizeof(kLatencies[0]);

template <typename Step>
__device__ __forceinline__ float cycles_of(Step step) {
  const long long start = clock64();
#pragma unroll 8
  for (int i = 0; i < kRepetitions; ++i) step();
  return static_cast<float>(clock64() - start) / kRepetitions;
}

// The compiler does not know the arguments, so it computes nothing ahead. Lanes differ, so no shuffle is one of equal
// values. The sum at the end keeps every chain.
__global__ void latencies(float* out, double x, float y, int z) {
  __shared__ int next[32];
  next[threadIdx.x] = (threadIdx.x + 1) % 32;
  __syncthreads();
  const float of_lane = 1e-3f * threadIdx.x;
  double d = x + of_lane;
  float f = y + of_lane;
  int i = (z + threadIdx.x) % 32;
  float cycles[kLatencyCount];
  cycles[0] = cycles_of([&] { d = fma(d, x, x); });
  cycles[1] = cycles_of([&] { d = x / (d + 1.0); });  // and an addition
  cycles[2] = cycles_of([&] { d = log(d + 2.0); });   // and an addition
  cycles[3] = cycles_of([&] { asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(f)); });
  cycles[4] = cycles_of([&] { f = __shfl_xor_sync(~0u, f, 1); });
  cycles[5] = cycles_of([&] { i = next[i]; });  // and the address
#if __CUDA_ARCH__ >= 800
  cycles[6] = cycles_of([&] { i = __reduce_max_sync(~0u, i) & 31; });  // and the mask
#else
  cycles[6] = 0.0f;
#endif
  cycles[7] = cycles_of([&] { f = fmaf(f, y, y); });
  cycles[8] = cycles_of([&] {  // to float and back: two conversions that the compiler would fold
    float single;
    asm volatile("cvt.rn.f32.f64 %0, %1;" : "=f"(single) : "d"(d));
    asm volatile("cvt.f64.f32 %0, %1;" : "=d"(d) : "f"(single));
  });
  cycles[9] = cycles_of([&] { __syncthreads(); });  // of one warp, which waits for no other
  if (threadIdx.x == 0) {
    for (int k = 0; k < kLatencyCount; ++k) out[k] = cycles[k];
  }
  if (d + f + i == 1.25) out[0] = 0.0f;
}

inline void probe_latencies(float* cycles) {
  float* const out = device_array<float>(kLatencyCount);
  smallest_of_runs([&] { latencies<<<1, 32>>>(out, 0.7, 0.7f, 3); }, out, cycles, kLatencyCount);
}

}  // namespace chip
