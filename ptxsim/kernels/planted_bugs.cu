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
#define MISSING_EXPECT_TX 22
#define WRONG_PHASE 23
#define EARLY_EXIT 24
#define READ_BEFORE_WAIT 25
#define CLUSTER_BARRIER_FOR_WAIT 26
#define MISSING_INIT_FENCE 27
#define TOO_FEW_BYTES 28
#define SINGLE_SLOT 29
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
// Blocks send their values to all blocks of the cluster, round by round, in two slots in turn.
template <int BUG>
__global__ void exchange_kernel(float* out) {
  constexpr int kRounds = 5, kLargest = 8;
  __shared__ float slots[2][kLargest][2];
  __shared__ alignas(8) uint64_t arrived[2];
  cg::cluster_group cluster = cg::this_cluster();
  const int t = threadIdx.x, rank = cluster.block_rank(), size = cluster.num_blocks();
  const uint32_t box = (uint32_t)__cvta_generic_to_shared(slots), bar = (uint32_t)__cvta_generic_to_shared(arrived);
  if (t == 0) {
    for (int b = 0; b < 2; b++) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar + 8 * b) : "memory");
    IF_RIGHT(MISSING_INIT_FENCE, asm volatile("fence.mbarrier_init.release.cluster;" :: : "memory"));
  }
  cluster.sync();
  float s = 0;
  for (int round = 0; round < kRounds; round++) {
    const int slot = BUG == SINGLE_SLOT ? 0 : round & 1, parity = BUG == SINGLE_SLOT ? round & 1 : round >> 1 & 1;
    const uint32_t bytes = 8 * size - (BUG == TOO_FEW_BYTES ? 8 : 0), b = bar + 8 * slot;
    if (t == 0 && BUG == MISSING_EXPECT_TX)
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b) : "memory");
    if (t == 0 && BUG != MISSING_EXPECT_TX)
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(bytes) : "memory");
    if (t < size) {
      uint32_t to, there;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(box + 64 * slot + 8 * rank), "r"(t));
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(b), "r"(t));
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
                   "f"(s + rank), "f"(1.0f * round), "r"(there)
                   : "memory");
    }
    if (BUG == EARLY_EXIT && round == kRounds - 1 && rank == 1) return;
    if (BUG == READ_BEFORE_WAIT) s += slots[slot][t % size][0];
    if (BUG == CLUSTER_BARRIER_FOR_WAIT) cluster.sync();
    uint32_t done = BUG == CLUSTER_BARRIER_FOR_WAIT;
    while (!done)
      asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                   : "=r"(done)
                   : "r"(b), "r"(BUG == WRONG_PHASE ? parity ^ 1 : parity)
                   : "memory");
    for (int r = 0; r < size; r++) s += slots[slot][r][0] + slots[slot][r][1];
    __syncwarp();
  }
  out[blockIdx.x * 32 + t] = s;
}
#define EXCHANGE(bug) template __global__ void exchange_kernel<bug>(float*)
EXCHANGE(0);
EXCHANGE(22);
EXCHANGE(23);
EXCHANGE(24);
EXCHANGE(25);
EXCHANGE(26);
EXCHANGE(27);
EXCHANGE(28);
EXCHANGE(29);

// Block 1 writes to block 0, which reads after a barrier of both blocks, or of its own threads only.
extern "C" __global__ void __cluster_dims__(2) one_way(float* out, int ordered) {
  __shared__ float value;
  cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0) value = 0;
  cluster.sync();
  if (cluster.block_rank() == 1 && threadIdx.x == 0) *cluster.map_shared_rank(&value, 0) = 1;
  if (ordered) cluster.sync();
  __syncthreads();
  if (cluster.block_rank() == 0) out[threadIdx.x] = *(volatile float*)&value;
  cluster.sync();
}
// A thread begins two stores to one place, or to two, before it waits for either.
extern "C" __global__ void begun_twice(float* out, int apart) {
  __shared__ alignas(8) float slots[2][2];
  __shared__ alignas(8) uint64_t arrived;
  const uint32_t to = (uint32_t)__cvta_generic_to_shared(slots), bar = (uint32_t)__cvta_generic_to_shared(&arrived);
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 16;" ::"r"(bar) : "memory");
  for (uint32_t i = 0, place = to; i < 2; i++, place += 8 * apart)
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %1}, [%2];" ::"r"(place),
                 "f"(1.0f + i), "r"(bar)
                 : "memory");
  uint32_t done = 0;
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(bar)
                 : "memory");
  out[0] = slots[0][0] + slots[apart][0];
}

// One thread copies a tile into shared memory, and all wait for it. A bug leaves out the wait, or the copy's bytes.
template <int BUG>
__global__ void bulk_kernel(const float* x, float* out, int n) {
  __shared__ alignas(16) float tile[256];
  __shared__ alignas(8) uint64_t arrived;
  const uint32_t to = (uint32_t)__cvta_generic_to_shared(tile), bar = (uint32_t)__cvta_generic_to_shared(&arrived);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  uint64_t state = 0;
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(x), "r"(4 * n), "r"(bar)
                 : "memory");
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(4 * n) : "memory");
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(bar) : "memory");
  }
  uint32_t done = BUG == READ_BEFORE_WAIT;
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(bar), "l"(state)
                 : "memory");
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = tile[i];
}
template __global__ void bulk_kernel<0>(const float*, float*, int);
template __global__ void bulk_kernel<READ_BEFORE_WAIT>(const float*, float*, int);
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
