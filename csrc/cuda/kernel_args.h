// What every CUDA kernel of this project is launched with: one plain struct, the same for solve, sample and blend. An
// output that is not wanted is null.
#pragma once

#include <cstdint>

namespace trb::cuda {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

struct Logits {  // [N, V]; strides in elements
  const void* data;
  int64_t row_stride;
  int64_t stride;
  DType dtype;
};

struct KernelArgs {
  Logits student;
  Logits teacher;
  int64_t rows;
  int32_t vocab;
  int32_t slice_vectors;  // 16-byte vectors of one model that a block keeps in shared memory; 0 where none are kept
  double inverse_temperature;
  float scale;                   // log2(e) / T
  double temperature_of_scale;   // log2(e) / scale: the temperature that the rounded scale amounts to
  double epsilon;                // nats, where epsilon_per_row is null
  const float* epsilon_per_row;  // [N]
  int64_t epsilon_stride;
  const double* uniform;  // [N] in [0, 1)
  int64_t uniform_stride;
  float* beta;              // [N]
  float* kl;                // [N]
  int32_t* sweeps;          // [N]
  float* log_probs;         // [N, V], contiguous
  int64_t* token;           // [N], and the three below with it
  float* log_prob;          // [N]
  float* student_log_prob;  // [N]
  float* teacher_log_prob;  // [N]
};

}  // namespace trb::cuda
