// Launching kernels on the current stream, and the kernel over rows as each device can run it.
#pragma once

#include <cuda_runtime_api.h>

#include "../checks.h"
#include "kernel_args.h"

namespace trb::cuda {

inline void check_cuda(const char* op, cudaError_t status) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // else whoever asks the runtime next is told of it again
  check(false, op, ": CUDA error: ", cudaGetErrorString(status));
}

// The driver loads a kernel at its first mention, which a stream capture in progress must not forbid.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // then what it was before
};

// The kernel counts tokens in 32 bits.
inline int32_t vocab_of(const char* op, int64_t vocab) {
  constexpr int64_t kLargestVocab = (int64_t{1} << 31) - (int64_t{1} << 16);
  check(vocab <= kLargestVocab, op, ": the vocabulary must have at most ", kLargestVocab, " tokens, got ", vocab);
  return static_cast<int32_t>(vocab);
}

Logits logits_of(const Tensor& tensor);

// All rows of `args`, at least one, on the device that is current; sets args.slice_vectors and args.prefetch.
void launch_rows(const char* op, int device, KernelArgs& args);

}  // namespace trb::cuda
