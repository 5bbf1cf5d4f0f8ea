// One kernel for each loop over a row that csrc/cuda/kernel/solve_rows.cuh is made of, so that the loop is the only one
// in its machine code: what it costs per pair of logits can then be counted.
#include "../../../csrc/cuda/kernel/sweep/sweep.cuh"

using namespace trb::cuda;

template <typename T>
__device__ __forceinline__ void probe_load(const KernelArgs& args, float* out) {
  extern __shared__ uint4 slices[];
  const RowPair<T> row(args, blockIdx.x);
  const ResidentSlice<T> slice(slices, args.slice_vectors, 0, threadIdx.x);
  typename LogitVector<T>::Scan extremes;
  scan_whole(row, slice, chunks_of_row<T>(args.vocab), threadIdx.x, &extremes);
  const Extremes found = extremes.result();
  out[threadIdx.x] = found.max_student + found.max_teacher + found.lowest + found.high + found.low;
}

template <typename T, typename Sweep>
__device__ __forceinline__ void probe_sweep(const KernelArgs& args, const typename Sweep::Frame* in_memory,
                                            float* out) {
  extern __shared__ uint4 slices[];
  const typename Sweep::Frame frame = *in_memory;  // in registers, as in the kernels: not operands from constant memory
  const ResidentSlice<T> slice(slices, args.slice_vectors, 0, threadIdx.x);
  SumsOf<Sweep, ResidentSlice<T>> sums = {};
  add_chunks<Sweep, false, T>(slice, chunks_of_row<T>(args.vocab), threadIdx.x, frame, sums, nullptr);
  for (int k = 0; k < Sweep::kSums; ++k) out[threadIdx.x * Sweep::kSums + k] = total(sums[k]);
}

#define TRB_PROBES(name, T)                                                                                            \
  extern "C" __global__ void load_##name(const __grid_constant__ KernelArgs args, float* out) {                        \
    probe_load<T>(args, out);                                                                                          \
  }                                                                                                                    \
  extern "C" __global__ void ends_##name(const __grid_constant__ KernelArgs args, const EndsSweep::Frame* f,           \
                                         float* out) {                                                                 \
    probe_sweep<T, EndsSweep>(args, f, out);                                                                           \
  }                                                                                                                    \
  extern "C" __global__ void direct_##name(const __grid_constant__ KernelArgs args, const ExactFrame* f, float* out) { \
    probe_sweep<T, DirectSweep>(args, f, out);                                                                         \
  }                                                                                                                    \
  extern "C" __global__ void stable_##name(const __grid_constant__ KernelArgs args, const ExactFrame* f, float* out) { \
    probe_sweep<T, StableSweep>(args, f, out);                                                                         \
  }                                                                                                                    \
  extern "C" __global__ void residual_##name(const __grid_constant__ KernelArgs args, const ExactFrame* f,             \
                                             float* out) {                                                             \
    probe_sweep<T, ResidualSweep>(args, f, out);                                                                       \
  }

TRB_PROBES(bfloat16, __nv_bfloat16)
TRB_PROBES(float16, __half)
TRB_PROBES(float32, float)
