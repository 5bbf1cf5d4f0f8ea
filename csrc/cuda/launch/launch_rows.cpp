#include "launch_rows.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "../kernels.h"
#include "launch_overrides.h"
#include "launch_table.h"

namespace trb::cuda {
namespace {

// How a device runs a kernel. The device is asked once, because the answer takes a few microseconds and does not
// change.
struct DeviceLaunch {
  Launch launch;
  const void* kernel;
  int threads;
  int64_t clusters;  // how many run at the same time
};

// The two ways in which a device holds a row, with the same results.
struct DeviceLaunches {
  DeviceLaunch usual, wide;  // of the wide one 0 at once if there is none
  Strips strips;
  Architecture architecture;

  const DeviceLaunch& of(int64_t rows) const {
    const bool takes = takes_wide(architecture, usual.launch, usual.clusters, wide.launch, wide.clusters, rows);
    return takes ? wide : usual;
  }
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

int attribute_of(const char* op, cudaDeviceAttr attribute, int device) {
  int value = 0;
  check_cuda(op, cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// How many clusters of the launch run at the same time. 0 if the device cannot run any, because a slice of a GPU may
// have too few multiprocessors to form one.
int64_t clusters_at_once(const char* op, int device, const DeviceLaunch& device_launch) {
  int count = 0;
  if (device_launch.launch.ranks > 1) {
    cudaLaunchAttribute cluster_dimension;
    const cudaLaunchConfig_t config = configure(device_launch, 1, nullptr, &cluster_dimension);
    if (cudaOccupancyMaxActiveClusters(&count, device_launch.kernel, &config) == cudaSuccess) return count;
    (void)cudaGetLastError();  // the device has no clusters of this size
    return 0;
  }
  check_cuda(op, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, device_launch.kernel, device_launch.threads,
                                                               device_launch.launch.shared_bytes()));
  return int64_t{count} * attribute_of(op, cudaDevAttrMultiProcessorCount, device);
}

// Adds the wide launch to a usual one, if the device can run it.
DeviceLaunches with_wide(const char* op, int device, const DeviceLaunch& usual, const Architecture& architecture,
                         bool may, int64_t vocab, int64_t logit_bytes) {
  DeviceLaunches found{usual, usual, strips_of(usual.launch, vocab, logit_bytes), architecture};
  found.wide.launch = widened(usual.launch, vocab, logit_bytes);
  found.wide.clusters =
      may && found.wide.launch.ranks > usual.launch.ranks ? clusters_at_once(op, device, found.wide) : 0;
  return found;
}

DeviceLaunches ask_device(const char* op, int device, const RowKernels& kernels, int64_t vocab, int64_t logit_bytes) {
  // 1. The device and the kernel as it was compiled.
  const int capability = 10 * attribute_of(op, cudaDevAttrComputeCapabilityMajor, device) +
                         attribute_of(op, cudaDevAttrComputeCapabilityMinor, device);
  cudaFuncAttributes attributes;
  check_cuda(op, cudaFuncGetAttributes(&attributes, kernels.resident));
  const bool clusters = attributes.ptxVersion >= 90;  // a kernel that was compiled for less has none
  // 2. The kernel may use all shared memory of the device, whatever this vocabulary needs. The attribute belongs to the
  // kernel, and the next vocabulary may need more.
  const int most =
      attribute_of(op, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - static_cast<int>(attributes.sharedSizeBytes);
  check_cuda(op, cudaFuncSetAttribute(kernels.resident, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  check_cuda(op, cudaFuncSetAttribute(kernels.resident, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared));
  if (clusters) {
    check_cuda(op, cudaFuncSetAttribute(kernels.resident, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  const Architecture& architecture = architecture_of(capability);
  // 3. A number of blocks that the environment sets is used or is an error.
  if (const int ranks = launch_overrides().ranks; ranks > 0) {
    DeviceLaunch found{split_over(ranks, vocab, logit_bytes), kernels.resident, kResidentThreads, 0};
    if ((clusters || ranks == 1) && fits(architecture, found.launch, 1)) {
      found.clusters = clusters_at_once(op, device, found);
    }
    check(found.clusters > 0, op, ": TRB_CUDA_RANKS must be a number of blocks that can hold a row, got ", ranks,
          " for a vocabulary of ", vocab, " on device ", device);
    return with_wide(op, device, found, architecture, false, vocab, logit_bytes);
  }
  // 4. Otherwise the launch table's choice, with more blocks if the device cannot run that one.
  for (int fewest_blocks = 1;; ++fewest_blocks) {
    DeviceLaunch found{launch_for(vocab, logit_bytes, capability, clusters, fewest_blocks), nullptr, 0, 0};
    found.kernel = found.launch.resident() ? kernels.resident : kernels.streamed;
    found.threads = found.launch.resident() ? kResidentThreads : kStreamedThreads;
    found.clusters = clusters_at_once(op, device, found);
    if (found.clusters > 0) return with_wide(op, device, found, architecture, clusters, vocab, logit_bytes);
    check(found.launch.resident(), op, ": device ", device, " cannot run a block of ", found.threads, " threads");
    fewest_blocks = found.launch.ranks;
  }
}

const DeviceLaunches& launches_on(const char* op, int device, DType dtype, int64_t vocab) {
  static std::mutex mutex;
  static std::map<std::tuple<int, DType, int64_t>, DeviceLaunches> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(device, dtype, vocab);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const RowKernels kernels = dtype == DType::kFloat32   ? float32_rows()
                             : dtype == DType::kFloat16 ? float16_rows()
                                                        : bfloat16_rows();
  const RelaxedCapture relaxed;
  const DeviceLaunches asked = ask_device(op, device, kernels, vocab, dtype == DType::kFloat32 ? 4 : 2);
  return known.emplace(key, asked).first->second;
}

}  // namespace

Logits logits_of(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1),
          dtype == ScalarType::Float  ? DType::kFloat32
          : dtype == ScalarType::Half ? DType::kFloat16
                                      : DType::kBFloat16};
}

KernelArgs kernel_args_of(const RowCall& call) {
  KernelArgs args = {};
  args.student = logits_of(call.student);
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
  return args;
}

void launch_rows(const char* op, int device, KernelArgs& args) {
  // Models of different dtypes are both converted to float32, which holds either exactly. A student that is given in
  // another form than raw logits is converted to float32 logits, and the teacher with it.
  const bool alike = args.student.dtype == args.teacher.dtype && args.verify.student_kind == StudentKind::kLogits;
  const DeviceLaunches& launches = launches_on(op, device, alike ? args.student.dtype : DType::kFloat32, args.vocab);
  const DeviceLaunch& launch = launches.of(args.rows);
  args.slice_vectors = launch.launch.slice_vectors;
  args.sections = launch.launch.sections;
  args.strips = launches.strips;
  args.prefetch = launch_overrides().prefetch;
  cudaLaunchAttribute cluster_dimension;
  const cudaLaunchConfig_t config =
      configure(launch, std::min(args.rows, launch.clusters), static_cast<cudaStream_t>(current_cuda_stream(device)),
                &cluster_dimension);
  void* parameters[] = {&args};
  check_cuda(op, cudaLaunchKernelExC(&config, launch.kernel, parameters));
}

}  // namespace trb::cuda
