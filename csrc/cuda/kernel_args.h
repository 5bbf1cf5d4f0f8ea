// What every CUDA kernel over rows is launched with: one plain struct, the same for solve, sample, blend and verify. An
// output that is not wanted is null.
#pragma once

#include <cstdint>

#include "../blend/verify.h"

namespace trb::cuda {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

struct Logits {  // [N, V], or [R, V] of verify; strides in elements
  const void* data;
  int64_t row_stride;
  int64_t stride;
  DType dtype;
};

// Of a row: one number for all of a call, or of each request of verify.
struct Temperature {
  double inverse;
  float scale;     // log2(e) / T
  double rounded;  // log2(e) / scale: the temperature that the rounded scale amounts to

  Temperature() = default;
  TRB_HD explicit Temperature(double temperature)
      : inverse(1.0 / temperature),
        scale(static_cast<float>(kLog2eExactly / temperature)),
        rounded(kLog2eExactly / static_cast<double>(scale)) {}

  static constexpr double kLog2eExactly = 1.4426950408889634;
};

struct KernelArgs {
  Logits student;
  Logits teacher;
  int64_t rows;
  int32_t vocab;
  int32_t slice_vectors;    // 16-byte vectors of one model that a block keeps in shared memory; 0 where none are kept
  bool prefetch;            // of the next row into the second-level cache
  Temperature temperature;  // not of verify
  double epsilon;           // nats, where epsilon_per_row is null
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
  // Of verify, where epsilon, the temperature and the uniforms are here, and the rows of the logits are those that the
  // indices name; its outputs are made of the verdicts by assemble_requests.
  VerifyArrays verify;
  RowVerdict* verdicts;  // [N]; null for the other operators

  TRB_HD bool verifies() const { return verdicts != nullptr; }
  TRB_HD bool draws() const { return token != nullptr || verifies(); }
};

}  // namespace trb::cuda
