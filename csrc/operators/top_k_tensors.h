// Turns the tensors of a top-k teacher into plain data.
#pragma once

#include "../torch_compat.h"
#include "top_k_teacher.h"

namespace trb {

inline TopKTeacher top_k_teacher(const Tensor& ids, const Tensor& log_probs) {
  return {
      ids.const_data_ptr(), ids.stride(0),       ids.stride(1), static_cast<const float*>(log_probs.const_data_ptr()),
      log_probs.stride(0),  log_probs.stride(1), ids.size(1),   ids.scalar_type() == ScalarType::Long};
}

}  // namespace trb
