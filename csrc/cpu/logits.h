// One row of logits as it lies in memory: any of the three dtypes, any element stride (a column of a transposed tensor,
// a slice of a padded vocabulary), any alignment. Blocks are widened to double in cache; nothing is copied beyond a
// block.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace trb::cpu {

struct LogitsRow {
  const void* data;
  int64_t stride;  // elements
  torch::headeronly::ScalarType dtype;

  bool contiguous() const { return stride == 1; }

  // out[i] = logit[begin + i], exactly
  void load(int64_t begin, int64_t count, float* out) const {
    using torch::headeronly::ScalarType;
    if (dtype == ScalarType::Float) {
      load_as<float>(begin, count, 1.0f, out);
    } else if (dtype == ScalarType::Half) {
      load_as<torch::headeronly::Half>(begin, count, 1.0f, out);
    } else {
      load_as<torch::headeronly::BFloat16>(begin, count, 1.0f, out);
    }
  }

  // The bit patterns of bfloat16 logits.
  void load_bits(int64_t begin, int64_t count, uint16_t* out) const {
    const uint16_t* source = static_cast<const uint16_t*>(data) + begin * stride;
    for (int64_t i = 0; i < count; ++i) out[i] = source[i * stride];
  }

  // out[i] = logit[begin + i] * scale
  void load(int64_t begin, int64_t count, double scale, double* out) const {
    using torch::headeronly::ScalarType;
    if (dtype == ScalarType::Float) {
      load_as<float>(begin, count, scale, out);
    } else if (dtype == ScalarType::Half) {
      load_as<torch::headeronly::Half>(begin, count, scale, out);
    } else {
      load_as<torch::headeronly::BFloat16>(begin, count, scale, out);
    }
  }

 private:
  template <typename T, typename Out>
  void load_as(int64_t begin, int64_t count, Out scale, Out* out) const {
    const T* source = static_cast<const T*>(data) + begin * stride;
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Out>(static_cast<float>(source[i * stride])) * scale;
  }
};

// The two rows of one prefix: scaled logits x = a / T of the student, y = b / T of the teacher.
struct RowPair {
  LogitsRow student;
  LogitsRow teacher;
  int64_t vocab;
  double inverse_temperature;
};

}  // namespace trb::cpu
