// torch.ops.trb on CUDA: one launch on the current stream, nothing allocated but the outputs, nothing waited for.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "../operators.h"
#include "kernel_args.h"
#include "launch_table.h"
#include "row_kernels.h"

namespace trb::cuda {
namespace {

void check_cuda(const char* op, cudaError_t status) {
  check(status == cudaSuccess, op, ": CUDA error: ", cudaGetErrorString(status));
}

// What a device says of a kernel, asked once: the answer costs a few microseconds and does not change.
struct DeviceLaunch {
  Launch launch;
  const void* kernel;
  int threads;
  int64_t clusters;  // that run at the same time
};

cudaLaunchConfig_t configure(const DeviceLaunch& device_launch, int64_t clusters, cudaStream_t stream,
                             cudaLaunchAttribute* cluster_dimension) {
  const Launch& launch = device_launch.launch;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(clusters * launch.ranks));
  config.blockDim = dim3(device_launch.threads);
  config.dynamicSmemBytes = launch.shared_bytes();
  config.stream = stream;
  cluster_dimension->id = cudaLaunchAttributeClusterDimension;
  cluster_dimension->val.clusterDim.x = launch.ranks;
  cluster_dimension->val.clusterDim.y = cluster_dimension->val.clusterDim.z = 1;
  config.attrs = cluster_dimension;
  config.numAttrs = launch.ranks > 1 ? 1 : 0;
  return config;
}

DeviceLaunch ask_device(const char* op, int device, const RowKernels& kernels, int64_t vocab, int64_t logit_bytes) {
  int major = 0, minor = 0, multiprocessors = 0;
  check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check_cuda(op, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  check_cuda(op, cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  cudaFuncAttributes attributes;
  check_cuda(op, cudaFuncGetAttributes(&attributes, kernels.resident));
  // Compiled for an older architecture than the device's, the kernel knows no clusters.
  const int capability = std::min(10 * major + minor, attributes.ptxVersion);
  DeviceLaunch found{launch_for(vocab, logit_bytes, capability), nullptr, 0, 0};
  found.kernel = found.launch.resident() ? kernels.resident : kernels.streamed;
  found.threads = found.launch.resident() ? kResidentThreads : kStreamedThreads;
  check_cuda(op, cudaFuncSetAttribute(found.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(found.launch.shared_bytes())));
  int count = 0;
  if (found.launch.ranks > 1) {
    cudaLaunchAttribute cluster_dimension;
    const cudaLaunchConfig_t config = configure(found, 1, nullptr, &cluster_dimension);
    check_cuda(op, cudaOccupancyMaxActiveClusters(&count, found.kernel, &config));
    found.clusters = count;
  } else {
    check_cuda(op, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, found.kernel, found.threads,
                                                                 found.launch.shared_bytes()));
    found.clusters = static_cast<int64_t>(count) * multiprocessors;
  }
  check(found.clusters > 0, op, ": a row of ", vocab, " logits needs ", found.launch.ranks, " blocks with ",
        found.launch.shared_bytes(), " bytes of shared memory at once, which device ", device, " cannot run");
  return found;
}

const DeviceLaunch& launch_on(const char* op, int device, DType dtype, int64_t vocab) {
  static std::mutex mutex;
  static std::map<std::tuple<int, DType, int64_t>, DeviceLaunch> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(device, dtype, vocab);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const RowKernels kernels = dtype == DType::kFloat32   ? float32_rows()
                             : dtype == DType::kFloat16 ? float16_rows()
                                                        : bfloat16_rows();
  return known.emplace(key, ask_device(op, device, kernels, vocab, dtype == DType::kFloat32 ? 4 : 2)).first->second;
}

Logits logits_of(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1),
          dtype == ScalarType::Float  ? DType::kFloat32
          : dtype == ScalarType::Half ? DType::kFloat16
                                      : DType::kBFloat16};
}

void run(const Request& request) {
  constexpr int64_t kLargestVocab = (int64_t{1} << 31) - (int64_t{1} << 16);
  const int64_t vocab = request.student.size(1);
  check(vocab <= kLargestVocab, request.op, ": the vocabulary must have at most ", kLargestVocab, " tokens, got ",
        vocab);
  const DeviceGuard guard(request.student.get_device());
  const int device = request.student.get_device();

  KernelArgs args = {};
  args.student = logits_of(request.student);
  args.teacher = logits_of(request.teacher);
  args.rows = request.student.size(0);
  args.vocab = static_cast<int32_t>(vocab);
  args.inverse_temperature = 1.0 / request.temperature;
  args.scale = static_cast<float>(1.4426950408889634 / request.temperature);
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

  // Two models of different dtype meet as float32, which holds both exactly.
  const DType dtype = args.student.dtype == args.teacher.dtype ? args.student.dtype : DType::kFloat32;
  const DeviceLaunch& launch = launch_on(request.op, device, dtype, vocab);
  args.slice_vectors = launch.launch.slice_vectors;
  cudaLaunchAttribute cluster_dimension;
  const cudaLaunchConfig_t config =
      configure(launch, std::min(args.rows, launch.clusters), static_cast<cudaStream_t>(current_cuda_stream(device)),
                &cluster_dimension);
  void* parameters[] = {&args};
  check_cuda(request.op, cudaLaunchKernelExC(&config, launch.kernel, parameters));
}

}  // namespace
}  // namespace trb::cuda

STABLE_TORCH_LIBRARY_IMPL(trb, CUDA, m) { TRB_REGISTER_OPERATORS(m, trb::cuda::run); }
