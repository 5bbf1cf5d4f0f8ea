// The only file that names internals of torch's stable ABI. Target: torch 2.10, one binary for 2.10 and later.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>

namespace trb {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Never throw from the body: torch 2.11 .. 2.14 lose the message of an exception that crosses this boundary.
using torch::stable::parallel_for;

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

// Unlike STD_TORCH_CHECK, whose messages start with a C++ function, file and line.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

using torch::stable::accelerator::DeviceGuard;

}  // namespace trb

// In libtorch_cuda.so. Weak, so that a library with CUDA kernels loads under a torch without CUDA: it is null there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace trb {

// The cudaStream_t that torch launches on.
inline void* current_cuda_stream(int32_t device) {
  check(aoti_torch_get_current_cuda_stream != nullptr, "trb: this PyTorch was built without CUDA");
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "trb: device ", device,
        " has no current CUDA stream");
  return stream;
}

}  // namespace trb
