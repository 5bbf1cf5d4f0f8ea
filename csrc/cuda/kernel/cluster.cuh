// Joins the blocks that hold one row: a thread-block cluster from compute capability 9.0 on, a single block before it.
//
// Blocks exchange words by st.async, whose bytes an mbarrier of the receiving block counts. A barrier of the cluster
// would do the same, but its release waits for all of the GPU (MEMBAR.ALL.GPU) and its acquire empties the first-level
// cache. Here only data in shared memory is handed over, of which there is no other copy.
#pragma once

#include <cstdint>

#include "../launch/launch_table.h"
#include "warp.cuh"

namespace trb::cuda {

constexpr int kGroups = kWarp / kLargestCluster;  // of lanes that send, one lane in each for a block

struct Cluster {
  int rank = 0, ranks = 1;

  __device__ __forceinline__ Cluster() {
#if __CUDA_ARCH__ >= 900
    // cooperative_groups has them too, and takes a quarter of the compiler's time.
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
#endif
  }

  // All threads of all blocks, once: initializes mbarriers whose phases take one arrival, and waits until all blocks
  // have done so.
  template <int kCount>
  __device__ __forceinline__ void start(uint64_t (&mbarriers)[kCount]) const {
#if __CUDA_ARCH__ >= 900
    if (ranks == 1) return;
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address_of(mbarriers + i)) : "memory");
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
  }

  // One thread of each block: lets a phase of the mbarrier expect `words` words from every block, before the block
  // waits for that phase.
  __device__ __forceinline__ void expect(int words, uint64_t* mbarrier) const {
#if __CUDA_ARCH__ >= 900
    const int several = ranks > 1;
    asm volatile("{.reg .pred p; setp.ne.s32 p,%2,0; @p mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;}" ::"r"(
                     address_of(mbarrier)),
                 "r"(8 * words * ranks), "r"(several)
                 : "memory");
#endif
  }

  // All lanes of warp 0 of all blocks: sends a message of `words` words to `to` in every block. A lane has the words
  // lane / kLargestCluster + kGroups i, and sends them to block lane % kLargestCluster. The receiver must `wait` for
  // the mbarrier before it reads them, and before a peer sends to the same place again.
  template <int kWords>
  __device__ __forceinline__ void send(void* to, int words, const uint64_t (&of_lane)[kWords], uint64_t* mbarrier,
                                       int lane) const {
    const int peer = lane % kLargestCluster, group = lane / kLargestCluster;
#if __CUDA_ARCH__ >= 900
    const uint32_t there = in_block(min(peer, ranks - 1), address_of(to) + 8 * group),
                   arrived = in_block(min(peer, ranks - 1), address_of(mbarrier));
    const bool several = ranks > 1;
#else
    const bool several = false;
#endif
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const bool holds = group + kGroups * i < words;
#if __CUDA_ARCH__ >= 900
      const int sends = holds & several & (peer < ranks);
      asm volatile(
          "{.reg .pred p; setp.ne.s32 p,%3,0; @p st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 "
          "[%0],%1,[%2];}" ::"r"(there + 8 * kGroups * i),
          "l"(of_lane[i]), "r"(arrived), "r"(sends)
          : "memory");
#endif
      const int keeps = holds & !several & (peer == 0);
      asm volatile("{.reg .pred p; setp.ne.s32 p,%2,0; @p st.shared.b64 [%0],%1;}" ::"r"(address_of(to) +
                                                                                         8 * (group + kGroups * i)),
                   "l"(of_lane[i]), "r"(keeps)
                   : "memory");
    }
  }

  // All lanes of warp 0: waits until the words of all blocks have come in the phase of this parity. No block may end
  // while others still send to it, so each block waits for whatever is sent.
  __device__ __forceinline__ void wait(uint64_t* mbarrier, int parity) const {
#if __CUDA_ARCH__ >= 900
    if (ranks > 1) {
      uint32_t ended;
      do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(ended)
                     : "r"(address_of(mbarrier)), "r"(parity)
                     : "memory");
      } while (ended == 0);
      return;
    }
#endif
    __syncwarp();
  }

 private:
  static __device__ __forceinline__ uint32_t address_of(const void* object) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(object));
  }
  // The address of the same object in block `r`.
  static __device__ __forceinline__ uint32_t in_block(int r, uint32_t address) {
    uint32_t mapped;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(r));
    return mapped;
  }
};

// Counts the exchanges of a block. Those of records alternate between two slots, and those of residuals have a slot of
// their own: a block may send its next record while a slow peer still reads the last one, and cannot send the one after
// before the peer has sent its next.
struct Exchanges {
  int records = 0, residuals = 0;
};

}  // namespace trb::cuda
