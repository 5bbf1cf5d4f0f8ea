#include "kernel/solve_rows.cuh"

namespace trb::cuda {

RowKernels float16_rows() {
  return {reinterpret_cast<const void*>(&resident_rows<__half>), reinterpret_cast<const void*>(&streamed_rows<__half>)};
}

}  // namespace trb::cuda
