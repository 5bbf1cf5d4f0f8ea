// Instantiated once as is and once for each BUG: the same kernel with one line wrong.
#include <cooperative_groups.h>

#include <cstdint>
namespace cg = cooperative_groups;
#define MISSING_SYNCTHREADS 1
#define MISSING_SYNCWARP 2
#define OFF_BY_ONE 3
#define MISALIGNED 4
#define PARTIAL_WARP 5
#define DIVERGENT_BARRIER 6
#define UNINITIALIZED_SHARED 7
#define UNINITIALIZED_GLOBAL 8
#define SHARED_OVERFLOW 9
#define SINGLE_BUFFER 10
#define DEADLOCK 11
#define INACTIVE_LANE 12
#define OVERLAPPING_STORES 13
#define TRAP 14
#define EXITED_BEFORE_BARRIER 15
#define MISSING_FIRST_CLUSTER_SYNC 16
#define MISSING_LAST_CLUSTER_SYNC 17
#define BLOCK_SYNC_FOR_CLUSTER 18
#define WRITE_AFTER_ARRIVE 19
#define ARRIVE_WITHOUT_WAIT 20
#define EXITED_PEER 21
#define IF_RIGHT(bug, statement) \
  if constexpr (BUG != bug) statement

template <int BUG>
__global__ void block_kernel(const float* x, float* out, float* scratch, int n) {
  __shared__ float tile[256];
  __shared__ float sums[2][8];
  __shared__ __align__(16) uint16_t small[512];
  __shared__ volatile float exchange[256];
  int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  float s = 0;
  if (BUG == EXITED_BEFORE_BARRIER && t >= 128) return;
  for (int i = blockIdx.x * 256 + t; i < n + (BUG == OFF_BY_ONE); i += 256 * gridDim.x) s += x[i];
  if (BUG != UNINITIALIZED_SHARED || t != 5) tile[BUG == SHARED_OVERFLOW ? t + 900 : t] = s;
  IF_RIGHT(MISSING_SYNCTHREADS, __syncthreads());
  s += tile[255 - t];
  exchange[t] = s;
  IF_RIGHT(MISSING_SYNCWARP, __syncwarp());
  s = exchange[t ^ 1];
  if (BUG != PARTIAL_WARP || lane < 16)
    for (int o = 16; o; o >>= 1)
      s += __shfl_xor_sync(BUG == INACTIVE_LANE ? (lane < 16 ? 0xffffu : 0xffff0000u) : 0xffffffffu, s, o);
  for (int round = 0; round < 3; round++) {  // two buffers make one barrier per round enough
    int parity = BUG == SINGLE_BUFFER ? 0 : round & 1;
    if (lane == 0) sums[parity][warp] = s + round;
    if (BUG == DIVERGENT_BARRIER && round == 1) {
      if (warp < 4) {
        scratch[t] = 1;
        __syncthreads();
        scratch[t] = 2;
      } else
        __syncthreads();
    } else
      __syncthreads();
    for (int w = 0; w < 8; w++) s += sums[parity][w];
  }
  if (BUG == DEADLOCK && warp == 3) asm volatile("bar.sync 5, 64;");
  small[BUG == OVERLAPPING_STORES ? t | 1 : t] = (uint16_t)t;
  if (BUG == UNINITIALIZED_GLOBAL) s += scratch[t];
  scratch[t + 256 * blockIdx.x] = s + small[BUG == OVERLAPPING_STORES ? t | 1 : t];
  if (BUG == TRAP && !(s < 1e30f && s > 1e30f)) asm volatile("trap;");
  reinterpret_cast<float2*>(out + (BUG == MISALIGNED))[t + 256 * blockIdx.x] = make_float2(s, s);
}
// Two warps fill a box for two others, twice: they must not refill it before it has been read.
template <int BUG>
__global__ void named_barrier_kernel(int* out) {
  __shared__ int box[64];
  int t = threadIdx.x;
  for (int round = 0; round < 2; round++) {
    if (t < 64) {
      if (round && BUG == ARRIVE_WITHOUT_WAIT) asm volatile("bar.arrive 2, 128;" ::: "memory");
      if (round && BUG != ARRIVE_WITHOUT_WAIT) asm volatile("bar.sync 2, 128;" ::: "memory");
      box[t] = t * 2 + round;
      asm volatile("bar.arrive 1, 128;" ::: "memory");
    } else {
      asm volatile("bar.sync 1, 128;" ::: "memory");
      out[round * 64 + t - 64] = box[127 - t];
      if (!round && BUG == ARRIVE_WITHOUT_WAIT) asm volatile("bar.sync 2, 128;" ::: "memory");
      if (!round && BUG != ARRIVE_WITHOUT_WAIT) asm volatile("bar.arrive 2, 128;" ::: "memory");
    }
  }
}
extern "C" __global__ void forgotten_reader(
    float* out) {  // thread 0 reads last, then writes what thread 32 may still read
  __shared__ volatile float value;
  if (threadIdx.x == 0) value = 1;
  __syncthreads();
  if (threadIdx.x == 32) out[1] = value;
  if (threadIdx.x == 0) {
    out[0] = value;
    value = 2;
  }
}
__device__ __noinline__ int first_of(const volatile int* values) { return values[0]; }
// Thread 0 reads what thread 1 has written, perhaps after the rest of its warp has come to the barrier.
template <bool OF_CLUSTER>
__global__ void straggler(int* out, int ordered) {
  __shared__ volatile int values[64];
  values[threadIdx.x] = threadIdx.x + 5;
  if (ordered) __syncwarp();
  if (threadIdx.x == 0) out[blockIdx.x] = first_of(values + 1);
#if __CUDA_ARCH__ >= 900
  if (OF_CLUSTER) cg::this_cluster().sync();
#endif
  if (!OF_CLUSTER) __syncthreads();
}
template __global__ void straggler<false>(int*, int);
template __global__ void straggler<true>(int*, int);
template __global__ void named_barrier_kernel<0>(int*);
template __global__ void named_barrier_kernel<ARRIVE_WITHOUT_WAIT>(int*);
#if __CUDA_ARCH__ >= 900
template <int BUG>
__global__ void cluster_kernel(const float* x, float* out) {
  __shared__ float mine[2][64];
  cg::cluster_group cluster = cg::this_cluster();
  int t = threadIdx.x, rank = cluster.block_rank(), size = cluster.num_blocks();
  mine[0][t] = x[blockIdx.x * 64 + t];
  if (BUG == BLOCK_SYNC_FOR_CLUSTER) {
    mine[1][t] = 0;
    __syncthreads();
  } else
    IF_RIGHT(MISSING_FIRST_CLUSTER_SYNC, cluster.sync());
  if (BUG == EXITED_PEER && rank == 1) asm volatile("exit;");
  float s = 0;
  for (int r = 0; r < size; r++) s += *cluster.map_shared_rank(&mine[0][t], r);
  cluster.barrier_arrive();
  if (BUG == WRITE_AFTER_ARRIVE) mine[1][t] = s;
  if (BUG == WRITE_AFTER_ARRIVE) {
    cluster.barrier_wait();
    s += *cluster.map_shared_rank(&mine[1][t], rank ^ 1);
  } else {
    cluster.barrier_wait();
    mine[1][t] = s;
    cluster.sync();
    s += *cluster.map_shared_rank(&mine[1][t], rank ^ 1);
  }
  out[blockIdx.x * 64 + t] = s;
  IF_RIGHT(MISSING_LAST_CLUSTER_SYNC, cluster.sync());
}
#define CLUSTER(bug) template __global__ void cluster_kernel<bug>(const float*, float*);
CLUSTER(0)
CLUSTER(16)
CLUSTER(17)
CLUSTER(18)
CLUSTER(19)
CLUSTER(21)
#endif
#define BLOCK(bug) template __global__ void block_kernel<bug>(const float*, float*, float*, int);
BLOCK(0)
BLOCK(1)
BLOCK(2)
BLOCK(3)
BLOCK(4) BLOCK(5) BLOCK(6) BLOCK(7) BLOCK(8) BLOCK(9) BLOCK(10) BLOCK(11) BLOCK(12) BLOCK(13) BLOCK(14) BLOCK(15)
