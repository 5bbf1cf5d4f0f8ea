// Runs verify on CUDA: two launches on the current stream, first over the rows and then over the requests. The host
// does not wait.
#include "../../operators/verify_operator.h"

#include "launch_requests.h"
#include "launch_rows.h"

namespace trb::cuda {
namespace {

void run_verify(const VerifyCall& call) {
  const int device = call.student.get_device();
  const DeviceGuard guard(device);
  const Tensor verdicts = new_verdicts(call.student, call.arrays.rows);
  KernelArgs args = kernel_args_of(call.op, call.student, call.arrays, verdicts);
  args.teacher = logits_of(call.teacher);
  if (args.rows > 0) launch_rows(call.op, device, args);
  assemble_requests(call.op, device, call.arrays, args.verdicts);
}

}  // namespace
}  // namespace trb::cuda

TRB_LIBRARY_IMPL(CUDA, m) { TRB_REGISTER_VERIFY(m, trb::cuda::run_verify); }
