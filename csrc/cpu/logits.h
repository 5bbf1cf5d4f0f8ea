// One row of logits as it lies in memory: any of the three dtypes, any element stride (a column of a transposed tensor,
// a slice of a padded vocabulary), any alignment, and logits or what they can be had from. Blocks are widened to double
// in cache; nothing is copied beyond a block.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../blend/verify.h"
#include "../torch_compat.h"

namespace trb::cpu {

struct LogitsRow {
  const void* data;
  int64_t stride;  // elements
  torch::headeronly::ScalarType dtype;
  StudentKind kind = StudentKind::kLogits;
  float temperature = 1.0f;  // of what is not raw logits

  // Raw logits side by side, which a sweep can read where they lie.
  bool in_place() const { return stride == 1 && raw(); }
  bool raw() const { return kind == StudentKind::kLogits; }

  // out[i] = logit[begin + i], exactly, or what it is of the rest, rounded to float32
  void load(int64_t begin, int64_t count, float* out) const {
    using torch::headeronly::ScalarType;
    if (dtype == ScalarType::Float) {
      load_as<float>(begin, count, out);
    } else if (dtype == ScalarType::Half) {
      load_as<torch::headeronly::Half>(begin, count, out);
    } else {
      load_as<torch::headeronly::BFloat16>(begin, count, out);
    }
  }

  // The bit patterns of bfloat16 logits.
  void load_bits(int64_t begin, int64_t count, uint16_t* out) const {
    const uint16_t* source = static_cast<const uint16_t*>(data) + begin * stride;
    for (int64_t i = 0; i < count; ++i) out[i] = source[i * stride];
  }

  // out[i] = logit[begin + i] * scale, of the logit as float32
  void load(int64_t begin, int64_t count, double scale, double* out) const {
    using torch::headeronly::ScalarType;
    if (dtype == ScalarType::Float) {
      load_as<float>(begin, count, out);
    } else if (dtype == ScalarType::Half) {
      load_as<torch::headeronly::Half>(begin, count, out);
    } else {
      load_as<torch::headeronly::BFloat16>(begin, count, out);
    }
    if (scale != 1.0)
      for (int64_t i = 0; i < count; ++i) out[i] *= scale;
  }

 private:
  template <typename T, typename Out>
  void load_as(int64_t begin, int64_t count, Out* out) const {
    const T* source = static_cast<const T*>(data) + begin * stride;
    if (raw()) {
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Out>(static_cast<float>(source[i * stride]));
    } else if (kind == StudentKind::kProbabilities) {  // a negative one becomes NaN, and the row a faulty one
      for (int64_t i = 0; i < count; ++i) out[i] = times_temperature(std::log(static_cast<float>(source[i * stride])));
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = times_temperature(static_cast<float>(source[i * stride]));
    }
  }

  // What is finite stays so: a mask of the lowest finite number is not -inf, and the largest is no fault.
  float times_temperature(float x) const {
    constexpr float kLargest = std::numeric_limits<float>::max();
    const float product = x * temperature;
    return std::isinf(product) && !std::isinf(x) ? std::copysign(kLargest, product) : product;
  }
};

inline LogitsRow logits_row(const Tensor& logits, int64_t row) {
  const char* base = static_cast<const char*>(logits.const_data_ptr());
  return {base + row * logits.stride(0) * static_cast<int64_t>(logits.element_size()), logits.stride(1),
          logits.scalar_type()};
}

// The two rows of one prefix: scaled logits x = a / T of the student, y = b / T of the teacher.
struct RowPair {
  LogitsRow student;
  LogitsRow teacher;
  int64_t vocab;
  double inverse_temperature;
};

}  // namespace trb::cpu
