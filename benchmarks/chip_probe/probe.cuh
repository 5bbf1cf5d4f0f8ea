// Helpers of every probe: cycles of a chain, the best of several runs, errors that end the probe with their place.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace chip {

constexpr int kRepetitions = 512;  // of the instruction that a chain is made of

inline void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "chip_probe: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

// Device memory that lives as long as the probe.
template <typename T>
T* device_array(size_t count) {
  T* data = nullptr;
  require(cudaMalloc(&data, count * sizeof(T)), "cudaMalloc");
  require(cudaMemset(data, 0, count * sizeof(T)), "cudaMemset");
  return data;
}

// Runs `launch` several times and keeps the smallest of what each wrote to `out`, so that neither a cold instruction
// cache nor a clock that is still rising counts.
template <typename Launch>
void smallest_of_runs(Launch launch, const float* out, float* host, int count) {
  float now[64];
  for (int run = 0; run < 5; ++run) {
    launch();
    require(cudaGetLastError(), "launch");
    require(cudaDeviceSynchronize(), "a kernel of the probe");
    require(cudaMemcpy(now, out, count * sizeof(float), cudaMemcpyDeviceToHost), "cudaMemcpy");
    for (int i = 0; i < count; ++i) host[i] = run == 0 || now[i] < host[i] ? now[i] : host[i];
  }
}

// Keeps the multiprocessor busy for the given number of cycles.
__global__ void spin(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}

constexpr long long kHeadStart = 200'000;  // cycles, about 0.1 ms: the host is ahead of the device when it gets there

// Milliseconds of a launch between events, the smallest of several.
template <typename Launch>
float smallest_milliseconds(Launch launch, int runs = 10) {
  cudaEvent_t start, end;
  require(cudaEventCreate(&start), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  float smallest = 0.0f;
  for (int run = 0; run < runs; ++run) {
    spin<<<1, 1>>>(kHeadStart);
    require(cudaEventRecord(start), "cudaEventRecord");
    launch();
    require(cudaGetLastError(), "launch");
    require(cudaEventRecord(end), "cudaEventRecord");
    require(cudaEventSynchronize(end), "a kernel of the probe");
    float lasted = 0.0f;
    require(cudaEventElapsedTime(&lasted, start, end), "cudaEventElapsedTime");
    smallest = run == 0 || lasted < smallest ? lasted : smallest;
  }
  return smallest;
}

// One launch of `blocks` blocks in clusters of `ranks`.
struct ClusterLaunch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute dimension = {};

  ClusterLaunch(int blocks, int threads, int ranks, size_t shared_bytes) {
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    dimension.id = cudaLaunchAttributeClusterDimension;
    dimension.val.clusterDim.x = ranks;
    dimension.val.clusterDim.y = dimension.val.clusterDim.z = 1;
    config.attrs = &dimension;
    config.numAttrs = 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;  // config points into it
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;
};

}  // namespace chip
