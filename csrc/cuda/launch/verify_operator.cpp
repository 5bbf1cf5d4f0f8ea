// Runs verify on CUDA: two launches on the current stream, first over the rows and then over the requests. Between them
// are the verdicts of the rows, 32 bytes each. The host does not wait.
#include "../../operators/verify_operator.h"

#include "../kernels.h"
#include "launch_rows.h"

namespace trb::cuda {
namespace {

void assemble_requests(const char* op, const VerifyArrays& arrays, const RowVerdict* verdicts, cudaStream_t stream) {
  constexpr int64_t kRequests = kRequestsPerAssemblyBlock;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((arrays.requests + kRequests - 1) / kRequests));
  config.blockDim = dim3(kAssemblyThreads);
  config.stream = stream;
  VerifyArrays by_value = arrays;
  void* parameters[] = {&by_value, &verdicts};
  const RelaxedCapture relaxed;
  check_cuda(op, cudaLaunchKernelExC(&config, assembly_kernel(), parameters));
}

void run_verify(const VerifyCall& call) {
  const VerifyArrays& arrays = call.arrays;
  const int device = call.student.get_device();
  const DeviceGuard guard(device);
  Tensor verdicts =
      new_empty(call.student, {arrays.rows * int64_t{sizeof(RowVerdict) / sizeof(int64_t)}}, ScalarType::Long);
  static_assert(sizeof(RowVerdict) % sizeof(int64_t) == 0, "the verdicts are allocated as int64");

  KernelArgs args = {};
  args.student = logits_of(call.student);
  args.teacher = logits_of(call.teacher);
  args.rows = arrays.rows;
  args.vocab = vocab_of(call.op, arrays.vocab);
  args.beta = arrays.beta;
  args.kl = arrays.kl;
  args.verify = arrays;
  args.verdicts = static_cast<RowVerdict*>(verdicts.mutable_data_ptr());
  if (arrays.rows > 0) launch_rows(call.op, device, args);
  if (arrays.requests > 0) {
    assemble_requests(call.op, arrays, args.verdicts, static_cast<cudaStream_t>(current_cuda_stream(device)));
  }
}

}  // namespace
}  // namespace trb::cuda

TRB_LIBRARY_IMPL(CUDA, m) { TRB_REGISTER_VERIFY(m, trb::cuda::run_verify); }
