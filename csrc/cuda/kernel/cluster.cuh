// Joins the blocks that hold one row: a thread-block cluster from compute capability 9.0 on, a single block before it.
#pragma once

#include <cooperative_groups.h>

namespace trb::cuda {

struct Cluster {
  int rank = 0, ranks = 1;

  __device__ __forceinline__ Cluster() {
#if __CUDA_ARCH__ >= 900
    rank = cooperative_groups::this_cluster().block_rank();
    ranks = cooperative_groups::this_cluster().num_blocks();
#endif
  }

  // A barrier of all threads of all blocks. After it, each block sees what warp 0 of its peers has sent, including data
  // that other warps gave to warp 0 through a barrier of the block. It does not wait for the other warps' own writes to
  // device memory.
  __device__ __forceinline__ void sync(int warp) const {
#if __CUDA_ARCH__ >= 900
    if (ranks > 1) {
      if (warp == 0) {
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
      } else {
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
      }
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
  }

  // The object at the same address in the shared memory of block `r`.
  template <typename U>
  __device__ __forceinline__ U* peer(U* object, int r) const {
#if __CUDA_ARCH__ >= 900
    if (ranks > 1) return cooperative_groups::this_cluster().map_shared_rank(object, r);
#endif
    return object;
  }
};

}  // namespace trb::cuda
