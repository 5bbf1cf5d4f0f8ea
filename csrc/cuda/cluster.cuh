// The blocks that hold one row: a thread-block cluster from compute capability 9.0 on, a single block before.
#pragma once

#include <cooperative_groups.h>

namespace trb::cuda {

constexpr int kMaxRanks = 8;  // the largest cluster that every device with clusters can launch

struct Cluster {
  int rank = 0, ranks = 1;

  __device__ __forceinline__ Cluster() {
#if __CUDA_ARCH__ >= 900
    rank = cooperative_groups::this_cluster().block_rank();
    ranks = cooperative_groups::this_cluster().num_blocks();
#endif
  }

  // A barrier of all threads of all blocks; shared memory written before it may be read by peers after it.
  __device__ __forceinline__ void sync() const {
#if __CUDA_ARCH__ >= 900
    if (ranks > 1) {
      cooperative_groups::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }

  // The same object in the shared memory of block `r`.
  template <typename U>
  __device__ __forceinline__ const U* peer(const U* object, int r) const {
#if __CUDA_ARCH__ >= 900
    if (ranks > 1) return cooperative_groups::this_cluster().map_shared_rank(const_cast<U*>(object), r);
#endif
    return object;
  }
};

}  // namespace trb::cuda
