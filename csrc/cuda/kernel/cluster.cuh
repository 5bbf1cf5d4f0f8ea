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

struct Cluster {
  int rank = 0, ranks = 1;
  int sections;  // of each block

  __device__ __forceinline__ explicit Cluster(int sections) : sections(sections) {
#if __CUDA_ARCH__ >= 900
    // cooperative_groups has them too, and takes a quarter of the compiler's time.
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
#endif
  }

  // This cluster's number in the grid, and how many there are.
  __device__ __forceinline__ unsigned index() const { return ranks == 1 ? blockIdx.x : of_grid(true); }
  __device__ __forceinline__ unsigned count() const { return ranks == 1 ? gridDim.x : of_grid(false); }

  // The row's sections, and the first one of this block.
  __device__ __forceinline__ int all_sections() const { return ranks * sections; }
  __device__ __forceinline__ int first_section() const { return rank * sections; }

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

  // One thread of each block: lets a phase of the mbarrier expect `words` words of every section, before the block
  // waits for that phase.
  __device__ __forceinline__ void expect(int words, uint64_t* mbarrier) const {
#if __CUDA_ARCH__ >= 900
    const int several = ranks > 1;
    asm volatile("{.reg .pred p; setp.ne.s32 p,%2,0; @p mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;}" ::"r"(
                     address_of(mbarrier)),
                 "r"(8 * words * all_sections()), "r"(several)
                 : "memory");
#endif
  }

  // All lanes of warp 0 of all blocks: each lane that `holds` one sends its word to `to` in every block. The receiver
  // must `wait` for the mbarrier before it reads the words, and before a peer sends to the same place again.
  __device__ __forceinline__ void send(void* to, uint64_t word, bool holds, uint64_t* mbarrier) const {
#if __CUDA_ARCH__ >= 900
    if (ranks > 1) {
#pragma unroll 1
      for (int first = 0; first < ranks; first += kAtOnce) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) send_to(first + i, to, word, holds, mbarrier);
      }
      return;
    }
#endif
    if (holds) *static_cast<uint64_t*>(to) = word;
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
  // The special registers of clusters, which save divisions by `ranks`. They are read anew each time, to save
  // registers.
  static __device__ __forceinline__ unsigned of_grid(bool index) {
    unsigned found = 0;
#if __CUDA_ARCH__ >= 900
    if (index) {
      asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(found));
    } else {
      asm volatile("mov.u32 %0, %%nclusterid.x;" : "=r"(found));
    }
#endif
    return found;
  }
  static constexpr int kAtOnce = 3;  // sends between two branches; more would take too many registers

  __device__ __forceinline__ void send_to(int peer, void* to, uint64_t word, bool holds, uint64_t* mbarrier) const {
#if __CUDA_ARCH__ >= 900
    const int sends = holds & (peer < ranks);
    asm volatile(
        "{.reg .pred p; .reg .u32 there, arrived; setp.ne.s32 p,%4,0; @p mapa.shared::cluster.u32 there,%0,%3; "
        "@p mapa.shared::cluster.u32 arrived,%2,%3; "
        "@p st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [there],%1,[arrived];}" ::"r"(address_of(to)),
        "l"(word), "r"(address_of(mbarrier)), "r"(peer), "r"(sends)
        : "memory");
#endif
  }
  static __device__ __forceinline__ uint32_t address_of(const void* object) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(object));
  }
};

// Counts the exchanges and rows of a block. Records alternate between two slots, A and B: while a slow peer still reads
// A, a block may send its next record to B. It cannot send to A again before the peer has sent its own record to B,
// after it has read A. Residuals have a slot of their own.
class Exchanges {
 public:
  // The number of the next exchange of records, modulo 4: its slot, and twice the parity of the slot's phase.
  __device__ __forceinline__ int next_record() { return next(0, 3); }
  __device__ __forceinline__ int next_residual() { return next(2, 1); }
  __device__ __forceinline__ int next_row() { return next(3, 1); }
  // What the last next_row() returned, which takes no register of its own until then.
  __device__ __forceinline__ int row() const { return (counts_ >> 3 & 1) ^ 1; }

 private:
  __device__ __forceinline__ int next(int shift, int most) {
    const int now = counts_ >> shift & most;
    counts_ = (counts_ & ~(most << shift)) | ((now + 1) & most) << shift;
    return now;
  }

  int counts_ = 0;  // in one register
};

}  // namespace trb::cuda
