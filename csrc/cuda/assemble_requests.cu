// Makes the outputs of verify from the verdicts of its rows, one warp per request. Each warp finds by itself where the
// requests before its own end. All lanes fetch the verdicts at once and one lane goes through them: a request ends at
// its first row that was not accepted, and the verdicts after it are dropped.
#include "kernel/warp.cuh"
#include "kernel_args.h"
#include "kernels.h"

namespace trb::cuda {
namespace {

struct VerdictOf {
  const RowVerdict* held;  // of the request's first rows, in shared memory
  const RowVerdict* all;
  int64_t begin;

  TRB_HD const RowVerdict& operator()(int64_t row) const { return row - begin < kWarp ? held[row - begin] : all[row]; }
};

// All lanes of a warp: the largest end among the requests before this one that lies within the rows (rows_between).
__device__ __forceinline__ int64_t reached_before(const VerifyArrays& arrays, int64_t request, int lane) {
  int64_t reached = 0;
#pragma unroll 1
  for (int64_t i = 1 + lane; i <= request; i += kWarp) {
    const int64_t end = arrays.offsets[i];
    if (end <= arrays.rows) reached = max(reached, end);
  }
  return max_over_lanes(reached);
}

__global__ void __launch_bounds__(kAssemblyThreads)
    assemble_requests(const __grid_constant__ VerifyArrays arrays, const RowVerdict* verdicts) {
  __shared__ alignas(16) unsigned char storage[kAssemblyThreads * sizeof(RowVerdict)];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  RowVerdict* const held = reinterpret_cast<RowVerdict*>(storage) + warp * kWarp;
  const int64_t request = static_cast<int64_t>(blockIdx.x) * kRequestsPerAssemblyBlock + warp;
  if (request >= arrays.requests) return;
  int64_t reached = reached_before(arrays, request, lane);
  const RequestRows rows = rows_between(arrays.offsets[request], arrays.offsets[request + 1], arrays.rows, &reached);
  if (lane < rows.count) held[lane] = verdicts[rows.begin + lane];
  __syncwarp();
  if (lane == 0) assemble_request(arrays, request, rows, VerdictOf{held, verdicts, rows.begin});
}

}  // namespace

const void* assembly_kernel() { return reinterpret_cast<const void*>(&assemble_requests); }

}  // namespace trb::cuda
