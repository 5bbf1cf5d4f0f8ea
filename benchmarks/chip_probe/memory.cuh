// Measures device memory and the second-level cache: latency of one load, the rate of a single multiprocessor, a copy.
#pragma once

#include "probe.cuh"

namespace chip {

constexpr int kChaseSteps = 2048;
constexpr int kStreamThreads = 256;
constexpr int64_t kPoolBytes = int64_t{1} << 30;  // far more than any second-level cache
constexpr int64_t kCachedBytes = int64_t{2} << 20;
constexpr int kCachedPart = 48 << 10, kCachedPasses = 64;       // bytes of a block, two blocks on each multiprocessor
constexpr int kShortStream = 32 << 10, kLongStream = 96 << 10;  // bytes: whole turns of the loop

// One thread, each address read from the one before; first-level caches are left out (.cg).
__global__ void chase(const int64_t* links, float* out) {
  int64_t at = 0;
  const long long start = clock64();
#pragma unroll 1
  for (int i = 0; i < kChaseSteps; ++i) at = __ldcg(links + at);
  out[0] = static_cast<float>(clock64() - start) / kChaseSteps;
  if (at == -1) out[0] = 0.0f;
}

// Each line of 128 bytes names the line that is `stride` lines further, around the pool.
__global__ void link_lines(int64_t* links, int64_t lines, int64_t stride) {
  constexpr int64_t kLine = 16;  // words
  for (int64_t line = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; line < lines;
       line += int64_t{gridDim.x} * blockDim.x) {
    links[line * kLine] = (line + stride) % lines * kLine;
  }
}

// One block copies `bytes` of device memory into shared memory by 16-byte loads: half of them of one row and half of
// another, four of each in flight, as the kernels load a student's and a teacher's.
__global__ void __launch_bounds__(kStreamThreads) stream(const uint4* from, int bytes, float* out) {
  extern __shared__ uint4 held[];
  const int vectors = bytes / 16, half = vectors / 2;
  __syncthreads();
  const long long start = clock64();
  for (int first = threadIdx.x; first < half; first += 4 * kStreamThreads) {
    uint4 student[4], teacher[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      student[k] = __ldcs(from + first + k * kStreamThreads);
      teacher[k] = __ldcs(from + half + first + k * kStreamThreads);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      held[first + k * kStreamThreads] = student[k];
      held[half + first + k * kStreamThreads] = teacher[k];
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) out[0] = static_cast<float>(clock64() - start);
  if (held[threadIdx.x % vectors].x == 1) out[0] = 0.0f;  // the memory holds zeros
}

// Every block reads its own part of what the second-level cache holds, again and again; first-level caches are left
// out.
__global__ void __launch_bounds__(kStreamThreads) read_cached(const uint4* from, float* out) {
  constexpr int kVectors = kCachedPart / 16, kAtOnce = 4 * kStreamThreads;
  static_assert(kVectors % kAtOnce == 0, "whole turns of the loop");
  from += static_cast<int64_t>(blockIdx.x) * kVectors;
  uint32_t seen = 0;
#pragma unroll 1
  for (int pass = 0; pass < kCachedPasses; ++pass) {
#pragma unroll 1
    for (int first = threadIdx.x; first < kVectors; first += kAtOnce) {
      uint4 four[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) four[k] = __ldcg(from + first + k * kStreamThreads);
#pragma unroll
      for (int k = 0; k < 4; ++k) seen |= four[k].x;
    }
  }
  if (seen == 1) out[0] = 0.0f;  // the memory holds zeros
}

__global__ void copy(const uint4* from, uint4* to, int64_t vectors) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < vectors; i += int64_t{gridDim.x} * blockDim.x) {
    to[i] = from[i];
  }
}

__global__ void nothing() {}

// Cycles of one multiprocessor per nanosecond of the device's clock, over a millisecond.
__global__ void both_clocks(float* out) {
  unsigned long long began, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(began));
  const long long start = clock64();
  while (clock64() - start < 2'000'000) {
  }
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  out[0] = static_cast<float>(clock64() - start) / static_cast<float>(now - began);
}

struct Memory {
  float device_latency, cache_latency;  // cycles of one load; of device memory, with a new page of 2 MB each time
  float device_start, device_rate;      // one multiprocessor only: cycles until bytes flow, then bytes per cycle
  float cache_start, cache_rate;
  float cache_gb_per_s;  // that all multiprocessors together read from the second-level cache
  float copy_gb_per_s, launch_us, clock_ghz;
};

struct Stream {
  float start, rate;
};

// A line through the times of a short and of a long stream.
inline Stream probe_stream(const char* pool, bool cached, float* out) {
  require(cudaFuncSetAttribute(stream, cudaFuncAttributeMaxDynamicSharedMemorySize, kLongStream), "shared memory");
  float cycles[2];
  int64_t offset = 0;
  for (int which = 0; which < 2; ++which) {
    const int bytes = which == 0 ? kShortStream : kLongStream;
    smallest_of_runs(
        [&] {
          if (!cached) offset += kLongStream;  // bytes that no launch has touched
          stream<<<1, kStreamThreads, bytes>>>(reinterpret_cast<const uint4*>(pool + offset), bytes, out);
        },
        out, cycles + which, 1);
  }
  const float rate = (kLongStream - kShortStream) / (cycles[1] - cycles[0]);
  return {cycles[0] - kShortStream / rate, rate};
}

// The clock of a busy device: an idle one needs a while to raise it.
inline float probe_clock(int multiprocessors, float* out) {
  constexpr long long kHalfASecond = 1'000'000'000;  // cycles at 2 GHz
  spin<<<multiprocessors, 256>>>(kHalfASecond);
  float fastest = 0.0f;
  for (int run = 0; run < 5; ++run) {
    float now = 0.0f;
    both_clocks<<<1, 1>>>(out);
    require(cudaMemcpy(&now, out, sizeof(float), cudaMemcpyDeviceToHost), "the clocks");
    fastest = now > fastest ? now : fastest;
  }
  return fastest;
}

inline Memory probe_memory(int multiprocessors) {
  Memory found{};
  char* const pool = device_array<char>(kPoolBytes);
  char* const other = device_array<char>(kPoolBytes);
  float* const out = device_array<float>(1);
  found.clock_ghz = probe_clock(multiprocessors, out);

  const auto flush = [&] { require(cudaMemset(other, 0, kPoolBytes), "cudaMemset"); };
  flush();
  const Stream device = probe_stream(pool, false, out);
  const Stream cache = probe_stream(pool, true, out);
  found.device_start = device.start;
  found.device_rate = device.rate;
  found.cache_start = cache.start;
  found.cache_rate = cache.rate;
  const int readers = 2 * multiprocessors;
  const float reading = smallest_milliseconds(
      [&] { read_cached<<<readers, kStreamThreads>>>(reinterpret_cast<const uint4*>(pool), out); });
  found.cache_gb_per_s = static_cast<float>(1.0 * readers * kCachedPart * kCachedPasses / reading / 1e6);

  const int64_t all_lines = kPoolBytes / 128, cached_lines = kCachedBytes / 128;
  int64_t* const links = reinterpret_cast<int64_t*>(pool);
  // Far apart, so that no two steps share a page of the DRAM; few, so that all of them stay in the cache.
  link_lines<<<1024, 256>>>(links, all_lines, 40503);
  smallest_of_runs(
      [&] {
        flush();
        chase<<<1, 1>>>(links, out);
      },
      out, &found.device_latency, 1);
  link_lines<<<1024, 256>>>(links, cached_lines, 97);
  smallest_of_runs([&] { chase<<<1, 1>>>(links, out); }, out, &found.cache_latency, 1);

  const int64_t vectors = kPoolBytes / 16;
  const float milliseconds = smallest_milliseconds([&] {
    copy<<<16 * multiprocessors, 512>>>(reinterpret_cast<const uint4*>(pool), reinterpret_cast<uint4*>(other), vectors);
  });
  found.copy_gb_per_s = static_cast<float>(2.0 * kPoolBytes / milliseconds / 1e6);
  found.launch_us = 1e3f * smallest_milliseconds([] { nothing<<<1, 32>>>(); }, 50);
  require(cudaFree(pool), "cudaFree");
  require(cudaFree(other), "cudaFree");
  return found;
}

}  // namespace chip
