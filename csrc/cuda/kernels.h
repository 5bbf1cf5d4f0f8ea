// Declares the kernels as the host launches them. rows_float32.cu, rows_float16.cu and rows_bfloat16.cu compile the one
// over rows, for one logit type each, and assemble_requests.cu the other.
#pragma once

namespace trb::cuda {

constexpr int kResidentThreads = 256;
constexpr int kStreamedThreads = 512;  // one block solves a whole row, which it reads from the second-level cache

struct RowKernels {
  const void* resident;  // __global__ void (KernelArgs)
  const void* streamed;
};

RowKernels float32_rows();
RowKernels float16_rows();
RowKernels bfloat16_rows();

// The second kernel of verify, one warp per request.
constexpr int kAssemblyThreads = 128, kRequestsPerAssemblyBlock = kAssemblyThreads / 32;

const void* assembly_kernel();  // __global__ void (VerifyArrays, const RowVerdict*)

}  // namespace trb::cuda
