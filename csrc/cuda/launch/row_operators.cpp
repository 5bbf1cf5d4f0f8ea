// Runs solve, blend and sample on CUDA: one launch on the current stream. Nothing but the outputs is allocated, and the
// host does not wait.
#include "../../operators/row_operators.h"

#include "launch_rows.h"

namespace trb::cuda {
namespace {

void run(const Call& call) {
  const DeviceGuard guard(call.student.get_device());
  const int device = call.student.get_device();

  KernelArgs args = {};
  args.student = logits_of(call.student);
  args.teacher = logits_of(call.teacher);
  args.rows = call.student.size(0);
  args.vocab = vocab_of(call.op, call.student.size(1));
  args.temperature = Temperature(call.temperature);
  args.epsilon = call.epsilon;
  if (call.epsilon_per_row != nullptr) {
    args.epsilon_per_row = static_cast<const float*>(call.epsilon_per_row->const_data_ptr());
    args.epsilon_stride = call.epsilon_per_row->stride(0);
  }
  if (call.uniform != nullptr) {
    args.uniform = static_cast<const double*>(call.uniform->const_data_ptr());
    args.uniform_stride = call.uniform->stride(0);
  }
  args.beta = call.beta;
  args.kl = call.kl;
  args.sweeps = call.sweeps;
  args.log_probs = call.log_probs;
  args.token = call.token;
  args.log_prob = call.log_prob;
  args.student_log_prob = call.student_log_prob;
  args.teacher_log_prob = call.teacher_log_prob;
  launch_rows(call.op, device, args);
}

}  // namespace
}  // namespace trb::cuda

TRB_LIBRARY_IMPL(CUDA, m) { TRB_REGISTER_OPERATORS(m, trb::cuda::run); }
