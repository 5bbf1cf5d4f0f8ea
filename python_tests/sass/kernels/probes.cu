// Kernels whose machine code is known, for the tests of python_tests/sass.
#include <cstdint>

__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Per pass: one 128-bit load, 4 exponentials, 8 fused multiply-adds.
extern "C" __global__ void known_loop(const float4* __restrict__ x, float* out, int count) {
  float s0 = 0.0f, s1 = 0.0f;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float4 v = x[i * 32 + threadIdx.x];
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (float value : values) {
      const float weight = ex2(value);
      s0 = fmaf(weight, value, s0);
      s1 = fmaf(weight, s0, s1);
    }
  }
  out[threadIdx.x] = s0 + s1;
}

// Two inner loops in an outer one, with a shuffle in each pass of the outer: the lane-by-lane twin of a shuffle, which
// the compiler may put behind the end and return from by a backward branch, is no loop.
extern "C" __global__ void nested_loops(const float* __restrict__ x, float* out, int rows, int count) {
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    float total = 0.0f;
    int i = 0;
#pragma unroll 1
    do total = fmaf(x[i], total, 1.0f);
    while (++i < count);
#pragma unroll 1
    do total = ex2(total);
    while (--i > 0);
    if (threadIdx.x < total) total += __shfl_xor_sync(0xffffffffu, total, 16);
    out[row] = total;
  }
}

// 96 values live across a barrier in a thread that may keep 64 registers.
extern "C" __global__ void __launch_bounds__(1024) forced_spills(const float* __restrict__ x, float* out) {
  float values[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) values[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < 96; ++i) total = fmaf(values[i], values[95 - i], total) * values[(i * 7) % 96];
  out[threadIdx.x] = total;
}

// One double precision fused multiply-add per pass, and the conversion that feeds it.
extern "C" __global__ void doubles(const float* __restrict__ x, double* out, int count) {
  __shared__ double totals[256];
  double total = 0.0;
#pragma unroll 1
  for (int i = 0; i < count; ++i) total = fma(static_cast<double>(x[i]), total, total);
  totals[threadIdx.x] = total;
  __syncthreads();
  out[threadIdx.x] = totals[255 - threadIdx.x];
}

template <typename Word>
__global__ void copy(const Word* __restrict__ from, Word* to, int count) {
#pragma unroll 1
  for (int i = 0; i < count; ++i) to[i * 32 + threadIdx.x] = from[i * 32 + threadIdx.x];
}
template __global__ void copy<uint2>(const uint2*, uint2*, int);
template __global__ void copy<uint16_t>(const uint16_t*, uint16_t*, int);
