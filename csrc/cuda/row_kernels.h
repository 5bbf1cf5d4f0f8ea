// The kernels of one logit type, for the host. Compiled in rows_float32.cu, rows_float16.cu and rows_bfloat16.cu.
#pragma once

namespace trb::cuda {

constexpr int kResidentThreads = 256;
constexpr int kStreamedThreads = 512;  // a whole row by one block, from the second-level cache

struct RowKernels {
  const void* resident;  // __global__ void (KernelArgs)
  const void* streamed;
};

RowKernels float32_rows();
RowKernels float16_rows();
RowKernels bfloat16_rows();

}  // namespace trb::cuda
