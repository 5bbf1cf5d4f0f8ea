// Measures the rates of the kernels' own loops over a row (csrc/cuda/kernel/sweep/) while every multiprocessor is
// busy: the part of the issue slots that they fill, with one and with two blocks per multiprocessor.
#pragma once

#include <cuda_bf16.h>

#include "../../csrc/cuda/kernel/sweep/sweep.cuh"
#include "probe.cuh"

namespace chip {

constexpr int kSweepThreads = 256, kSweepWarps = kSweepThreads / 32;
constexpr int kSweepChunks = 96;  // of 256 bfloat16 logits: 48 KiB of each model, two blocks fit
constexpr int kSweepRuns = 16;
constexpr int64_t kSweepPairs = int64_t{kSweepChunks} * 256 * kSweepRuns;  // of a block

template <typename Sweep>
__global__ void __launch_bounds__(kSweepThreads, 2)
    sweep_rate(const typename Sweep::Frame* in_memory, float* sums_out, float* out) {
  using namespace trb::cuda;
  using T = __nv_bfloat16;
  extern __shared__ uint4 slices[];
  constexpr int kVectors = kSweepChunks * 32;
  for (int i = threadIdx.x; i < 2 * kVectors; i += kSweepThreads) slices[i] = make_uint4(0, 0, 0, 0);  // logits of 0
  const typename Sweep::Frame frame = *in_memory;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const ResidentSlice<T> slice(slices, kVectors, 0, lane);
  const Chunks chunks = Chunks{0, kSweepChunks}.part(warp, kSweepWarps);
  SumsOf<Sweep, ResidentSlice<T>> sums = {};
  __syncthreads();
  const long long start = clock64();
#pragma unroll 1
  for (int run = 0; run < kSweepRuns; ++run) add_chunks<Sweep, false, T>(slice, chunks, lane, frame, sums, nullptr);
  __syncthreads();
  if (threadIdx.x == 0 && blockIdx.x == 0) out[0] = static_cast<float>(clock64() - start) / kSweepPairs;
  for (int k = 0; k < Sweep::kSums; ++k) sums_out[threadIdx.x * Sweep::kSums + k] = total(sums[k]);
}

// Cycles of one pair of logits in a block, `blocks_per_multiprocessor` of which share each multiprocessor.
template <typename Sweep>
float probe_sweep(int multiprocessors, int blocks_per_multiprocessor) {
  constexpr int kBytes = 2 * kSweepChunks * 32 * 16;
  auto* const frame = device_array<typename Sweep::Frame>(1);
  float* const sums = device_array<float>(kSweepThreads * Sweep::kSums);
  float* const out = device_array<float>(1);
  require(cudaFuncSetAttribute(sweep_rate<Sweep>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
          "shared memory");
  require(cudaFuncSetAttribute(sweep_rate<Sweep>, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared),
          "shared memory");
  float cycles = 0.0f;
  smallest_of_runs(
      [&] {
        sweep_rate<Sweep><<<blocks_per_multiprocessor * multiprocessors, kSweepThreads, kBytes>>>(frame, sums, out);
      },
      out, &cycles, 1);
  return cycles;
}

}  // namespace chip
