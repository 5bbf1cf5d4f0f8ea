// torch.ops.trb.verify on CUDA: the rows and then the requests, two launches on the current stream with the verdicts of
// the rows between them, 32 bytes a row. Nothing is waited for.
#include "../verify_operator.h"
#include "assemble_requests.h"
#include "row_launch.h"

namespace trb::cuda {
namespace {

void assemble_requests(const char* op, const VerifyArrays& arrays, const RowVerdict* verdicts, cudaStream_t stream) {
  constexpr int64_t kRequests = kAssemblyThreads / 32;  // of one block
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((arrays.requests + kRequests - 1) / kRequests));
  config.blockDim = dim3(kAssemblyThreads);
  config.stream = stream;
  VerifyArrays by_value = arrays;
  void* parameters[] = {&by_value, &verdicts};
  const RelaxedCapture relaxed;
  check_cuda(op, cudaLaunchKernelExC(&config, assembly_kernel(), parameters));
}

void run_verify(const VerifyRequest& request) {
  const VerifyArrays& arrays = request.arrays;
  const int device = request.student.get_device();
  const DeviceGuard guard(device);
  Tensor verdicts =
      new_empty(request.student, {arrays.rows * int64_t{sizeof(RowVerdict) / sizeof(int64_t)}}, ScalarType::Long);
  static_assert(sizeof(RowVerdict) % sizeof(int64_t) == 0, "the verdicts are allocated as int64");

  KernelArgs args = {};
  args.student = logits_of(request.student);
  args.teacher = logits_of(request.teacher);
  args.rows = arrays.rows;
  args.vocab = vocab_of(request.op, arrays.vocab);
  args.beta = arrays.beta;
  args.kl = arrays.kl;
  args.verify = arrays;
  args.verdicts = static_cast<RowVerdict*>(verdicts.mutable_data_ptr());
  if (arrays.rows > 0) launch_rows(request.op, device, args);
  if (arrays.requests > 0) {
    assemble_requests(request.op, arrays, args.verdicts, static_cast<cudaStream_t>(current_cuda_stream(device)));
  }
}

}  // namespace
}  // namespace trb::cuda

STABLE_TORCH_LIBRARY_IMPL(trb, CUDA, m) { TRB_REGISTER_VERIFY(m, trb::cuda::run_verify); }
