// One row of logits as it lies in memory: any of the three dtypes, any element stride (a column of a transposed tensor,
// a slice of a padded vocabulary), any alignment, and logits or what they can be had from. Blocks are widened to double
// in cache; nothing is copied beyond a block.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "../blend/verify.h"
#include "../torch_compat.h"

namespace trb::cpu {

// What makes logits at temperature T of the numbers in memory: T log p, or T times what was divided by T before.
// Rounded to float32; what is finite stays so: a mask of the lowest finite number is not -inf, and the largest is no
// fault.
struct ToLogits {
  StudentKind kind = StudentKind::kLogits;
  float temperature = 1.0f;
  void (*log)(float* values, int64_t count) = nullptr;  // SweepTable's, the same in every sweep

  void operator()(float* values, int64_t count) const {
    constexpr float kLargest = std::numeric_limits<float>::max();
    if (kind == StudentKind::kLogits) return;
    if (kind == StudentKind::kProbabilities) log(values, count);
    for (int64_t i = 0; i < count; ++i) {
      const float product = values[i] * temperature;
      values[i] = std::isinf(product) && !std::isinf(values[i]) ? std::copysign(kLargest, product) : product;
    }
  }
};

struct LogitsRow {
  const void* data;
  int64_t stride;  // elements
  torch::headeronly::ScalarType dtype;
  ToLogits to_logits{};

  // Raw logits, which a sweep can read where they lie if they do so side by side.
  bool raw() const { return to_logits.kind == StudentKind::kLogits; }
  bool in_place() const { return stride == 1 && raw(); }

  // out[i] = logit[begin + i], exactly
  void load(int64_t begin, int64_t count, float* out) const {
    load_numbers(begin, count, out);
    to_logits(out, count);
  }

  // The bit patterns of bfloat16 logits.
  void load_bits(int64_t begin, int64_t count, uint16_t* out) const {
    const uint16_t* source = static_cast<const uint16_t*>(data) + begin * stride;
    for (int64_t i = 0; i < count; ++i) out[i] = source[i * stride];
  }

  // out[i] = logit[begin + i] * scale, of at most a block
  void load(int64_t begin, int64_t count, double scale, double* out) const {
    float logits[kBlock];
    load(begin, count, logits);
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<double>(logits[i]) * scale;
  }

 private:
  void load_numbers(int64_t begin, int64_t count, float* out) const {
    using torch::headeronly::ScalarType;
    if (dtype == ScalarType::Float) {
      load_as<float>(begin, count, out);
    } else if (dtype == ScalarType::Half) {
      load_as<torch::headeronly::Half>(begin, count, out);
    } else {
      load_as<torch::headeronly::BFloat16>(begin, count, out);
    }
  }

  template <typename T>
  void load_as(int64_t begin, int64_t count, float* out) const {
    const T* source = static_cast<const T*>(data) + begin * stride;
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(source[i * stride]);
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
