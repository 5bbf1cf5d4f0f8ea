// Launches kernels on the current stream, the kernel over rows in the way that each device can run it.
#pragma once

#include <cuda_runtime_api.h>

#include "../../operators/row_call.h"
#include "../kernel_args.h"
#include "driver_version.h"

namespace trb::cuda {

inline void check_cuda(const char* op, cudaError_t status) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // clears the error, which the runtime's next caller would get otherwise
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);
    check(false, op, ": ", remedy_for_driver(driver, CUDART_VERSION));
  }
  check(false, op, ": CUDA error: ", cudaGetErrorString(status));
}

// Relaxes stream capture while an object lives. The driver loads a kernel when it is first named, which a capture in
// progress forbids otherwise.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // after the first exchange: the mode before
};

// The vocabulary as the 32-bit number in which the kernel counts tokens.
inline int32_t vocab_of(const char* op, int64_t vocab) {
  constexpr int64_t kLargestVocab = (int64_t{1} << 31) - (int64_t{1} << 16);
  check(vocab <= kLargestVocab, op, ": the vocabulary must have at most ", kLargestVocab, " tokens, got ", vocab);
  return static_cast<int32_t>(vocab);
}

Logits logits_of(const Tensor& tensor);

// The arguments of solve, blend or sample, without the teacher.
KernelArgs kernel_args_of(const RowCall& call);

// Launches the kernel over all rows of `args`, at least one, on the current device. Sets
// args.slice_vectors, args.sections, args.strips and args.prefetch.
void launch_rows(const char* op, int device, KernelArgs& args);

}  // namespace trb::cuda
