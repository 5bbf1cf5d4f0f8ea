#include "kernel/solve_rows.cuh"

namespace trb::cuda {

RowKernels float32_rows() {
  return {reinterpret_cast<const void*>(&resident_rows<float>), reinterpret_cast<const void*>(&streamed_rows<float>)};
}

}  // namespace trb::cuda
