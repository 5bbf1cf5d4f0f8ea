// Warps, barriers, clusters, calls, memory spaces: each kernel's result is known exactly.
#include <cooperative_groups.h>
#include <cuda_bf16.h>

#include <cstdint>
namespace cg = cooperative_groups;
constexpr unsigned FULL = 0xffffffffu;

extern "C" __global__ void shuffles(int* out) {  // out[k * 64 + thread]
  int t = threadIdx.x, k = 0;
  auto put = [&](int v) { out[k++ * blockDim.x + t] = v; };
  put(__shfl_xor_sync(FULL, t, 5));
  put(__shfl_up_sync(FULL, t, 3));
  put(__shfl_down_sync(FULL, t, 3));
  put(__shfl_sync(FULL, t, 7));
  put(__shfl_sync(FULL, t, t * 3));
  put(__shfl_xor_sync(FULL, t, 9, 8));
  put(__shfl_up_sync(FULL, t, 2, 8));
  put(__shfl_down_sync(FULL, t, 2, 16));
  put(__shfl_sync(FULL, t, 9, 8));
  unsigned half = t & 16 ? 0xffff0000u : 0xffffu;
  put(__shfl_xor_sync(half, t, 15));
  int valid;
  asm volatile("{ .reg .pred p; .reg .b32 d; shfl.sync.up.b32 d|p, %1, 4, 0, -1; selp.s32 %0, 1, 0, p; }"
               : "=r"(valid)
               : "r"(t));
  put(valid);
}
extern "C" __global__ void votes(unsigned* out) {
  int t = threadIdx.x, k = 0;
  auto put = [&](unsigned v) { out[k++ * blockDim.x + t] = v; };
  put(__ballot_sync(FULL, t % 3 == 0));
  put(__any_sync(FULL, t == 40));
  put(__all_sync(FULL, t < 40));
  put(__match_any_sync(FULL, t / 5));
  put(__reduce_add_sync(FULL, (unsigned)t));
  put(__reduce_max_sync(FULL, t));
  put(__reduce_min_sync(FULL, t));
  put(__reduce_or_sync(FULL, 1u << (t & 7)));
  unsigned mine = t & 1 ? 0xaaaaaaaau : 0x55555555u;
  put(__ballot_sync(mine, t & 2));
  put(__reduce_add_sync(mine, (unsigned)t));
  put(t % 4 == 1 ? __activemask() : 0u);
  int pred;
  put(__match_all_sync(FULL, t / 32, &pred));
  put(pred);
}
#if __CUDA_ARCH__ >= 900
extern "C" __global__ void elect(unsigned* out) {
  unsigned lead;
  asm volatile("{ .reg .pred p; .reg .b32 d; elect.sync d|p, -1; selp.u32 %0, 1, 0, p; }" : "=r"(lead));
  out[threadIdx.x] = lead;
}
#endif
extern "C" __global__ void late_lanes(int* out) {  // lanes arrive at the shuffle along different paths
  int t = threadIdx.x, v = t;
  if (t & 1) {
    for (int i = 0; i < (t & 7); i++) v += out[t] * i;
  }
  out[t + 64] = __shfl_xor_sync(FULL, v, 1);
}
extern "C" __global__ void reducing_barriers(int* out) {
  int t = threadIdx.x;
  out[t] = __syncthreads_count(t % 3 == 0);
  out[128 + t] = __syncthreads_or(t == 77);
  out[256 + t] = __syncthreads_and(t < 100);
}
extern "C" __global__ void neighbors(uint16_t* out) {  // two-byte stores next to each other are no race
  __shared__ uint16_t s[128];
  s[threadIdx.x] = threadIdx.x * 3;
  out[threadIdx.x] = s[threadIdx.x];
}
__device__ __noinline__ float polynomial(float x, const float* c, int n, float* last) {
  float s = 0;
  for (int i = n; i--;) s = s * x + c[i];
  *last = c[n - 1];
  return s;
}
__constant__ float table[4] = {1.f, 2.f, .5f, -3.f};
__device__ double scale[2] = {2.0, 10.0};
extern "C" __global__ void calls(float* out, int n) {
  float local[8], last, x = threadIdx.x * .25f;
  for (int i = 0; i < 8; i++) local[i] = table[i & 3] * (i + threadIdx.x % 3);
  float r = threadIdx.x & 1 ? polynomial(x, local, n, &last) : polynomial(-x, table, 4, &last);
  out[threadIdx.x] = (float)(r * scale[threadIdx.x & 1]) + last;
}
struct Coefficients {
  float scale;
  int values[6];
};
extern "C" __global__ void parameter_by_index(const __grid_constant__ Coefficients p, float* out, int n) {
  const Coefficients* q = &p;
  out[threadIdx.x] = p.scale * q->values[threadIdx.x % n];
}
extern "C" __global__ void switches(int* out) {
  int t = threadIdx.x, r;
  switch (t % 11) {
    case 0:
      r = out[t] * 3;
      break;
    case 1:
      r = t ^ out[t + 32];
      break;
    case 2:
      r = 7;
      break;
    case 3:
      r = out[64];
      break;
    case 4:
      r = t << 3;
      break;
    case 5:
      r = -t;
      break;
    case 6:
      r = out[t] / 3;
      break;
    case 7:
      r = 1000;
      break;
    case 8:
      r = t * t;
      break;
    default:
      r = -1;
  }
  out[128 + t] = r;
}
extern "C" __global__ void atomics(int* out, float* sums) {
  __shared__ int bins[4];
  int t = threadIdx.x;
  if (t < 4) bins[t] = 0;
  __syncthreads();
  atomicAdd(&bins[t & 3], t);
  atomicMax(out, t * 7 % 101);
  atomicMin(out + 1, -t);
  atomicAdd(sums, t * .5f);
  atomicOr(out + 2, 1 << (t & 15));
  out[16 + atomicAdd(out + 3, 1)] = 1;
  atomicCAS(out + 4, 0, 5);
  atomicExch(out + 5, 9);
  atomicInc((unsigned*)out + 6, 9);
  __syncthreads();
  if (t < 4) out[8 + t] = bins[t];
}
extern "C" __global__ void arrival_order(int* out) {  // who comes first is the schedule's choice
  if (threadIdx.x % 32 == 0) out[1 + atomicAdd(out, 1)] = threadIdx.x / 32;
}
extern "C" __global__ void matrix_product(const uint32_t* a, const uint32_t* b, const float* c, float* d,
                                          int bf) {  // fragments as registers
  int t = threadIdx.x;
  uint32_t x[4], y[2];
  float z[4], r[4];
  for (int i = 0; i < 4; i++) x[i] = a[i * 32 + t], z[i] = c[i * 32 + t];
  for (int i = 0; i < 2; i++) y[i] = b[i * 32 + t];
#define MMA(type)                                                                                                   \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                               \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                                     \
               : "=f"(r[0]), "=f"(r[1]), "=f"(r[2]), "=f"(r[3])                                                     \
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]), "f"(z[0]), "f"(z[1]), "f"(z[2]), \
                 "f"(z[3]))
  if (bf)
    MMA("bf16");
  else
    MMA("f16");
  for (int i = 0; i < 4; i++) d[i * 32 + t] = r[i];
}
extern "C" __global__ void reads_twice(const float4* x, float* out, int n) {
  float4 s = make_float4(0, 0, 0, 0);
  for (int k = 0; k < 2; k++)
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      float4 v = __ldcs(x + i);
      s.x += v.x + k;
      s.y += v.y;
      s.z += v.z;
      s.w += v.w;
      __syncthreads();
    }
  out[threadIdx.x] = s.x + s.y + s.z + s.w;
}
extern "C" __global__ void strided(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x * 8]; }
extern "C" __global__ void scattered(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x * 37 % 64]; }
extern "C" __global__ void prefetches(const float* x, float* out, int past) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(x + threadIdx.x + past));
  if (threadIdx.x == 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(x), "r"(256 + 4 * past));
  out[threadIdx.x] = x[threadIdx.x];
}
#if __CUDA_ARCH__ >= 900
struct Peers {
  float value[32];
  float total;
};
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_sum(const float* x, float* out) {
  __shared__ Peers mine;
  cg::cluster_group cluster = cg::this_cluster();
  int t = threadIdx.x, rank = cluster.block_rank();
  mine.value[t] = x[blockIdx.x * 32 + t];
  cluster.sync();
  float s = 0;
  for (int r = 0; r < 4; r++) s += *cluster.map_shared_rank(&mine.value[t], (rank + r) & 3);
  out[blockIdx.x * 32 + t] = s;
  cluster.sync();
}
extern "C" __global__ void __cluster_dims__(4, 1, 1)
    cluster_push(const float* x, float* out) {  // writes and adds to peers
  __shared__ float box[32];
  __shared__ int arrived;
  cg::cluster_group cluster = cg::this_cluster();
  int t = threadIdx.x, rank = cluster.block_rank();
  if (t == 0) arrived = 0;
  cluster.sync();
  *cluster.map_shared_rank(&box[t], rank ^ 3) = x[blockIdx.x * 32 + t];
  if (t < 5) atomicAdd(cluster.map_shared_rank(&arrived, 2), rank + 1);
  cluster.sync();
  out[blockIdx.x * 32 + t] = box[t] + (rank == 2 ? arrived : 0);
}
// Block 1 arrives and goes. Block 2 is late: the barrier must still wait for it.
extern "C" __global__ void __cluster_dims__(4, 1, 1) arrives_and_leaves(float* out, int n) {
  __shared__ float late[32];
  cg::cluster_group cluster = cg::this_cluster();
  int t = threadIdx.x, rank = cluster.block_rank();
  if (rank == 1) {
    cluster.barrier_arrive();
    asm volatile("exit;");
  }
  float s = t;
  if (rank == 2)
    for (int i = 0; i < n; i++) s = s * 3 - i;
  late[t] = s;
  cluster.sync();
  out[blockIdx.x * 32 + t] = *cluster.map_shared_rank(&late[t], 2);
  cluster.sync();
}
extern "C" __global__ void split_cluster_barrier(const float* x, float* out) {  // arrive, work of its own, wait
  __shared__ float mine[32];
  extern __shared__ float own[];
  cg::cluster_group cluster = cg::this_cluster();
  int t = threadIdx.x, rank = cluster.block_rank();
  mine[t] = x[blockIdx.x * 32 + t];
  cluster.barrier_arrive();
  own[t] = t;
  cluster.barrier_wait();
  out[blockIdx.x * 32 + t] = *cluster.map_shared_rank(&mine[t], rank ^ 1) + own[t];
  cluster.sync();
}
#endif
