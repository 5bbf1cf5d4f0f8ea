#include "kernel/solve_rows.cuh"

namespace trb::cuda {

RowKernels bfloat16_rows() {
  return {reinterpret_cast<const void*>(&resident_rows<__nv_bfloat16>),
          reinterpret_cast<const void*>(&streamed_rows<__nv_bfloat16>)};
}

}  // namespace trb::cuda
