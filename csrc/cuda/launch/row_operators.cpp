// Runs solve, blend and sample on CUDA: one launch on the current stream. Nothing but the outputs is allocated, and the
// host does not wait.
#include "../../operators/row_operators.h"

#include "launch_rows.h"

namespace trb::cuda {
namespace {

void run(const Call& call) {
  const DeviceGuard guard(call.student.get_device());
  const int device = call.student.get_device();
  KernelArgs args = kernel_args_of(call);
  args.teacher = logits_of(call.teacher);
  launch_rows(call.op, device, args);
}

}  // namespace
}  // namespace trb::cuda

TRB_LIBRARY_IMPL(CUDA, m) { TRB_REGISTER_OPERATORS(m, trb::cuda::run); }
