#include "launch_requests.h"

#include "../kernels.h"
#include "launch_rows.h"

namespace trb::cuda {

Tensor new_verdicts(const Tensor& student, int64_t rows) {
  static_assert(sizeof(RowVerdict) % sizeof(int64_t) == 0, "the verdicts are allocated as int64");
  return new_empty(student, {rows * int64_t{sizeof(RowVerdict) / sizeof(int64_t)}}, ScalarType::Long);
}

KernelArgs kernel_args_of(const char* op, const Tensor& student, const VerifyArrays& arrays, const Tensor& verdicts) {
  KernelArgs args = {};
  args.student = logits_of(student);
  args.rows = arrays.rows;
  args.vocab = vocab_of(op, arrays.vocab);
  args.beta = arrays.beta;
  args.kl = arrays.kl;
  args.verify = arrays;
  args.verdicts = static_cast<RowVerdict*>(verdicts.mutable_data_ptr());
  return args;
}

void assemble_requests(const char* op, int device, const VerifyArrays& arrays, const RowVerdict* verdicts) {
  if (arrays.requests == 0) return;
  constexpr int64_t kRequests = kRequestsPerAssemblyBlock;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((arrays.requests + kRequests - 1) / kRequests));
  config.blockDim = dim3(kAssemblyThreads);
  config.stream = static_cast<cudaStream_t>(current_cuda_stream(device));
  VerifyArrays by_value = arrays;
  void* parameters[] = {&by_value, &verdicts};
  const RelaxedCapture relaxed;
  check_cuda(op, cudaLaunchKernelExC(&config, assembly_kernel(), parameters));
}

}  // namespace trb::cuda
