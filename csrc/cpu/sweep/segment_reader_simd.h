// Reads the logits of a segment as vectors of TRB_LANES floats. Everything here is local to the file that includes it.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../solver/limits.h"
#include "float_sweep.h"
#include "float_vector_simd.h"

namespace {

constexpr int64_t kTokens = trb::kBlock;

// Reads 2 kLanes tokens of a row as two vectors. For bfloat16 the two hold the even and the odd tokens, which takes
// only a shift and a mask. The order within the two does not change which pairs of logits are summed, because both rows
// use it.
struct Float32 {
  static TRB_INLINE void load(const void* row, int64_t token, Float* first, Float* second) {
    const float* source = static_cast<const float*>(row) + token;
    std::memcpy(first, source, sizeof(Float));
    std::memcpy(second, source + kLanes, sizeof(Float));
  }
  static TRB_INLINE Float load_in_order(const void* row, int64_t token) {
    Float value;
    std::memcpy(&value, static_cast<const float*>(row) + token, sizeof value);
    return value;
  }
  static TRB_INLINE void prefetch(const void* row, int64_t token) {
    const float* next = static_cast<const float*>(row) + token;
    __builtin_prefetch(next, 0, 2);
    if (kLanes == 16) __builtin_prefetch(next + kLanes, 0, 2);
  }
};

struct BFloat16 {
  static TRB_INLINE void load(const void* row, int64_t token, Float* first, Float* second) {
    Uint both;
    std::memcpy(&both, static_cast<const uint16_t*>(row) + token, sizeof both);
    *first = reinterpret_cast<Float>(both << 16);
    *second = reinterpret_cast<Float>(both & 0xffff0000u);
  }
  static TRB_INLINE Float load_in_order(const void* row, int64_t token) {
    uint16_t raw __attribute__((vector_size(2 * TRB_LANES)));
    std::memcpy(&raw, static_cast<const uint16_t*>(row) + token, sizeof raw);
    return reinterpret_cast<Float>(__builtin_convertvector(raw, Uint) << 16);
  }
  static TRB_INLINE void prefetch(const void* row, int64_t token) {
    __builtin_prefetch(static_cast<const uint16_t*>(row) + token, 0, 2);
  }
};

// Calls body(a, b) for each pair of vectors. Prefetches the next segment into the second-level cache meanwhile, because
// the scan of that segment would wait for memory otherwise.
template <typename Row, bool kFetch = true, typename Body>
TRB_INLINE void each_pair(const trb::cpu::Segment& segment, int64_t begin, int64_t end, const Body& body) {
  constexpr int64_t ahead = trb::cpu::kSegmentBlocks * kTokens;
  for (int64_t i = begin; i < end; i += 2 * kLanes) {
    Float a0, a1, b0, b1;
    if (kFetch) {
      Row::prefetch(segment.student, i + ahead);
      Row::prefetch(segment.teacher, i + ahead);
    }
    Row::load(segment.student, i, &a0, &a1);
    Row::load(segment.teacher, i, &b0, &b1);
    body(a0, b0);
    body(a1, b1);
  }
}

}  // namespace
