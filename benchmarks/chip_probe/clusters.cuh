// Measures how densely clusters are scheduled, and the cost of a meeting of the blocks of one cluster.
#pragma once

#include "probe.cuh"

namespace chip {

constexpr int kLargestCluster = 16;
constexpr int kClusterThreads = 256;

extern __shared__ char of_block[];

// Has the threads of the resident kernels, but fewer registers. Only shared memory matters here: the kernels' registers
// allow two blocks on a multiprocessor, as many as these sizes do (kSharedKilobytes).
__global__ void __launch_bounds__(kClusterThreads, 2) occupant(int* out) {
  of_block[threadIdx.x] = 1;
  if (out != nullptr) out[0] = of_block[0];
}

// Clusters that are on the GPU at the same time; -1 if the GPU has no clusters of this size.
inline int clusters_at_once(int ranks, int kilobytes) {
  const size_t bytes = static_cast<size_t>(kilobytes) << 10;
  int count = -1;
  ClusterLaunch launch(ranks, kClusterThreads, ranks, bytes);
  const bool known = cudaFuncSetAttribute(occupant, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(bytes)) == cudaSuccess &&
                     cudaOccupancyMaxActiveClusters(&count, occupant, &launch.config) == cudaSuccess;
  if (!known) (void)cudaGetLastError();
  return known ? count : -1;
}

enum class Meeting { kStoreAndBarrier, kBarrier, kAsyncStore };
constexpr const char* kMeetings[] = {"store_and_cluster_barrier", "cluster_barrier", "async_store_and_mbarrier"};

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t in_block(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
}
#endif

// kRepetitions meetings, each of which hands eight bytes of every block to every block (but kBarrier, which hands over
// none). kAsyncStore is what csrc/cuda/kernel/cluster.cuh does: warp 0 sends and waits, and the block follows it.
// kStoreAndBarrier is what it did before, with the fences of the barrier.
__global__ void __launch_bounds__(kClusterThreads, 2) meetings(float* out, int ranks, Meeting meeting) {
#if __CUDA_ARCH__ >= 900
  __shared__ double slots[2][kLargestCluster];
  __shared__ alignas(8) uint64_t barriers[2];
  const uint32_t slot = static_cast<uint32_t>(__cvta_generic_to_shared(slots));
  const uint32_t barrier = static_cast<uint32_t>(__cvta_generic_to_shared(barriers));
  const uint32_t thread = threadIdx.x;
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  if (thread == 0) {
    for (int b = 0; b < 2; ++b) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier + 8 * b) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_barrier();
  const long long start = clock64();
#pragma unroll 1
  for (int i = 0; i < kRepetitions; ++i) {
    const uint32_t b = i & 1, mine = slot + 8 * (kLargestCluster * b + rank);
    if (meeting == Meeting::kAsyncStore) {
      if (thread == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier + 8 * b), "r"(8 * ranks)
                     : "memory");
      }
      if (thread < ranks) {
        asm volatile(
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(in_block(mine, thread)),
            "l"(static_cast<long long>(i)), "r"(in_block(barrier + 8 * b, thread))
            : "memory");
      }
      if (thread < 32) {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "again:\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
            "@!done bra again;\n"
            "}" ::"r"(barrier + 8 * b),
            "r"((i >> 1) & 1)
            : "memory");
      }
      __syncthreads();
    } else {
      if (meeting == Meeting::kStoreAndBarrier && thread < ranks) {
        asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(in_block(mine, thread)), "l"(static_cast<long long>(i))
                     : "memory");
      }
      if (thread < 32) {
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
      } else {
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
      }
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
  }
  if (thread == 0 && blockIdx.x == 0) out[0] = static_cast<float>(clock64() - start) / kRepetitions;
  cluster_barrier();  // no block leaves while another still sends to it
#endif
}

inline float probe_meeting(Meeting meeting, int ranks) {
  float* const out = device_array<float>(1);
  ClusterLaunch launch(ranks, kClusterThreads, ranks, 0);
  float cycles = 0.0f;
  smallest_of_runs(
      [&] { require(cudaLaunchKernelEx(&launch.config, meetings, out, ranks, meeting), "a cluster launch"); }, out,
      &cycles, 1);
  return cycles;
}

}  // namespace chip
