// Declares the arguments of every kernel over rows: one plain struct for solve, sample, blend and verify. An output
// that is not wanted is null.
#pragma once

#include <cstdint>

#include "../operators/verify_requests.h"
#include "../solver/limits.h"
#include "launch/launch_table.h"

namespace trb::cuda {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

struct Logits {  // [N, V], or [R, V] for verify; strides in elements
  const void* data;
  int64_t row_stride;
  int64_t stride;
  DType dtype;
};

// The temperature of a row. One number for a whole call, or for each request of verify.
struct Temperature {
  double inverse;
  float scale;     // log2(e) / T
  double rounded;  // log2(e) / scale, the temperature of the rounded scale

  Temperature() = default;
  TRB_HD explicit Temperature(double temperature)
      : inverse(1.0 / temperature),
        scale(static_cast<float>(kLog2e / temperature)),
        rounded(kLog2e / static_cast<double>(scale)) {}
};

struct KernelArgs {
  Logits student;
  Logits teacher;
  int64_t rows;
  int32_t vocab;
  int32_t slice_vectors;  // 16-byte vectors of one model that a block keeps in shared memory; 0 if the row is streamed
  int32_t sections;       // of the row, in each block
  Strips strips;
  bool prefetch;                 // whether blocks prefetch their next row into the second-level cache
  Temperature temperature;       // not for verify
  double epsilon;                // nats, if epsilon_per_row is null
  const float* epsilon_per_row;  // [N]
  int64_t epsilon_stride;
  const double* uniform;  // [N] in [0, 1)
  int64_t uniform_stride;
  float* beta;              // [N]
  float* kl;                // [N]
  int32_t* sweeps;          // [N]
  float* log_probs;         // [N, V], contiguous
  int64_t* token;           // [N], as are the three below, which come with it
  float* log_prob;          // [N]
  float* student_log_prob;  // [N]
  float* teacher_log_prob;  // [N]
  // For verify only. Holds epsilon, the temperature, the uniforms, and the indices of each row's logits. The kernel
  // over rows writes the verdicts, from which assemble_requests.cu makes the outputs.
  VerifyArrays verify;
  RowVerdict* verdicts;  // [N]; null for the other operators

  TRB_HD bool verifies() const { return verdicts != nullptr; }
  TRB_HD bool draws() const { return (token != nullptr) | verifies(); }
};

}  // namespace trb::cuda
