#include "rows_kernel.cuh"

namespace trb::cuda {
template __global__ void resident_rows<float>(const __grid_constant__ KernelArgs);
template __global__ void streamed_rows<float>(const __grid_constant__ KernelArgs);
}  // namespace trb::cuda
