// torch.ops.trb on CUDA: one launch on the current stream, nothing allocated but the outputs, nothing waited for.
#include "../operators.h"
#include "row_launch.h"

namespace trb::cuda {
namespace {

void run(const Request& request) {
  const DeviceGuard guard(request.student.get_device());
  const int device = request.student.get_device();

  KernelArgs args = {};
  args.student = logits_of(request.student);
  args.teacher = logits_of(request.teacher);
  args.rows = request.student.size(0);
  args.vocab = vocab_of(request.op, request.student.size(1));
  args.temperature = Temperature(request.temperature);
  args.epsilon = request.epsilon;
  if (request.epsilon_per_row != nullptr) {
    args.epsilon_per_row = static_cast<const float*>(request.epsilon_per_row->const_data_ptr());
    args.epsilon_stride = request.epsilon_per_row->stride(0);
  }
  if (request.uniform != nullptr) {
    args.uniform = static_cast<const double*>(request.uniform->const_data_ptr());
    args.uniform_stride = request.uniform->stride(0);
  }
  args.beta = request.beta;
  args.kl = request.kl;
  args.sweeps = request.sweeps;
  args.log_probs = request.log_probs;
  args.token = request.token;
  args.log_prob = request.log_prob;
  args.student_log_prob = request.student_log_prob;
  args.teacher_log_prob = request.teacher_log_prob;
  launch_rows(request.op, device, args);
}

}  // namespace
}  // namespace trb::cuda

STABLE_TORCH_LIBRARY_IMPL(trb, CUDA, m) { TRB_REGISTER_OPERATORS(m, trb::cuda::run); }
