// Wraps torch's stable ABI. No other file names its internals. The target is torch 2.10, so that one binary loads under
// torch 2.10 and later.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <vector>

// Torch 2.11 has this macro under its old name only.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// The namespace of the operators: torch.ops.trb, or the one that Hugging Face's kernel-builder gives to each build
// (build.toml), so that several versions of a kernel can be loaded in one process.
#ifdef TORCH_EXTENSION_NAME
#define TRB_OPERATORS TORCH_EXTENSION_NAME
#else
#define TRB_OPERATORS trb
#endif
// One macro more, because the name must be expanded before torch pastes it.
#define TRB_EXPANDED(macro, ...) macro(__VA_ARGS__)
#define TRB_LIBRARY(m) TRB_EXPANDED(STABLE_TORCH_LIBRARY, TRB_OPERATORS, m)
#define TRB_LIBRARY_IMPL(device, m) TRB_EXPANDED(STABLE_TORCH_LIBRARY_IMPL, TRB_OPERATORS, device, m)

namespace trb {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The body must not throw, because torch 2.11 to 2.14 lose the message of an exception that leaves it.
using torch::stable::parallel_for;

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

// A contiguous tensor on the device of `like`. torch::stable::new_empty finds its operator by name on every call, which
// takes 1.5 microseconds for each of three to six outputs, while a small row is solved in thirty.
inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i > 1; --i) strides[i - 2] = strides[i - 1] * shape.begin()[i - 1];
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(),
                                                         strides.data(), type, device_type, like.get_device(),
                                                         &handle));
  return Tensor(handle);
}

// Throws unless `condition` holds. STD_TORCH_CHECK is not used, because its messages start with a C++ function, file
// and line.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

using torch::stable::accelerator::DeviceGuard;

}  // namespace trb

// Lies in libtorch_cuda.so. It is weak, and so null under a torch without CUDA, so that a library with CUDA kernels
// loads there too.
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
