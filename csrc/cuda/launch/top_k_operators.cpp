// Runs the operators on a top-k teacher on CUDA: one launch over the rows on the current stream, and for verify one
// over the requests. The host does not wait.
#include "../../operators/top_k_operators.h"

#include <algorithm>

#include "../../operators/verify_top_k_operator.h"
#include "../../solver/row_sums.h"
#include "../top_k_args.h"
#include "launch_requests.h"
#include "launch_rows.h"

namespace trb::cuda {
namespace {

void launch(const char* op, int device, TopKArgs& args) {
  constexpr int64_t kMostBlocks = int64_t{1} << 20;  // each then solves several rows
  check(args.call.vocab <= kLargestTopKVocab, op, ": the vocabulary must have at most ", kLargestTopKVocab,
        " tokens, got ", args.call.vocab);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(std::min(args.call.rows, kMostBlocks)));
  config.blockDim = dim3(kTopKThreads);
  config.dynamicSmemBytes = kTopKBytesPerBlock * block_count(args.call.vocab);
  config.stream = static_cast<cudaStream_t>(current_cuda_stream(device));
  void* parameters[] = {&args};
  const RelaxedCapture relaxed;
  check_cuda(op, cudaLaunchKernelExC(&config, top_k_kernel(), parameters));
}

void run(const TopKCall& call) {
  const int device = call.student.get_device();
  const DeviceGuard guard(device);
  TopKArgs args = {};
  args.call = kernel_args_of(call);
  args.teacher = top_k_teacher(call.ids, call.teacher_log_probs);
  launch(call.op, device, args);
}

void run_verify(const VerifyTopKCall& call) {
  const int device = call.student.get_device();
  const DeviceGuard guard(device);
  const Tensor verdicts = new_verdicts(call.student, call.arrays.rows);
  TopKArgs args = {};
  args.call = kernel_args_of(call.op, call.student, call.arrays, verdicts);
  args.teacher = top_k_teacher(call.ids, call.teacher_log_probs);
  if (args.call.rows > 0) launch(call.op, device, args);
  assemble_requests(call.op, device, call.arrays, args.call.verdicts);
}

}  // namespace
}  // namespace trb::cuda

TRB_LIBRARY_IMPL(CUDA, m) {
  TRB_REGISTER_TOP_K_OPERATORS(m, trb::cuda::run);
  TRB_REGISTER_VERIFY_TOP_K(m, trb::cuda::run_verify);
}
