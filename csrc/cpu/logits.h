// Reads one row of logits from memory: any of the three dtypes, any element stride (a column of a transposed tensor, a
// slice of a padded vocabulary), any alignment, and raw logits or values that they can be computed from. Never copies
// more than a segment.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "../operators/verify_requests.h"
#include "../torch_compat.h"

namespace trb::cpu {

// Turns the numbers in memory into raw logits: T log p for probabilities, T x for logits that were divided by T. Rounds
// to float32. A finite number stays finite, because -inf would be a mask and +inf a fault.
struct ToLogits {
  StudentKind kind = StudentKind::kLogits;
  float temperature = 1.0f;
  void (*log)(float* values, int64_t count) = nullptr;  // SweepTable::log, the same in every sweep

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

  // Raw logits need no conversion, and if they are also contiguous a sweep can read them in place.
  bool raw() const { return to_logits.kind == StudentKind::kLogits; }
  bool in_place() const { return stride == 1 && raw(); }

  // Writes out[i] = logit[begin + i], exactly.
  void load(int64_t begin, int64_t count, float* out) const {
    load_numbers(begin, count, out);
    to_logits(out, count);
  }

  // Writes the bit patterns of bfloat16 logits.
  void load_bits(int64_t begin, int64_t count, uint16_t* out) const {
    const uint16_t* source = static_cast<const uint16_t*>(data) + begin * stride;
    for (int64_t i = 0; i < count; ++i) out[i] = source[i * stride];
  }

  // Writes out[i] = logit[begin + i] * scale, for at most a block.
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

// The logits of both models after one prefix.
struct RowPair {
  LogitsRow student;
  LogitsRow teacher;
  int64_t vocab;
  double inverse_temperature;
};

}  // namespace trb::cpu
