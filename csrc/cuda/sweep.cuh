// A warp's sweep over its chunks, and the sum of what its lanes found.
//
// Reduction order: a lane adds its tokens in token order, at most kFlushTokens of them before it adds to a second
// accumulator (one float chain of a thousand would cost three digits); then a fixed tree over the lanes.
#pragma once

#include "pair_sums.cuh"
#include "row_source.cuh"

namespace trb::cuda {

constexpr int kFlushTokens = 128;

// The masked form is right for any chunk, and takes those of an irregular row too.
template <typename Sweep, bool kMasked, typename T, typename Source>
__device__ __forceinline__ void add_chunks(const Source& source, Chunks chunks, int lane,
                                           const typename Sweep::Frame& frame, float (&sums)[Sweep::kSlots],
                                           RangeOfD* range) {
  constexpr int kTokens = LogitVector<T>::kTokens, kFlush = kFlushTokens / kTokens;
#pragma unroll 1
  for (int32_t begin = chunks.begin; begin < chunks.end; begin += kFlush) {
    const int32_t end = min(begin + kFlush, chunks.end);
    float part[Sweep::kSums] = {};
#pragma unroll 1
    for (int32_t chunk = begin; chunk < end; ++chunk) {
      uint4 student, teacher;
      source.template vectors<kMasked>(chunk, lane, &student, &teacher);
      float a[kTokens], b[kTokens];
      LogitVector<T>::unpack(student, a);
      LogitVector<T>::unpack(teacher, b);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) Sweep::template add<kMasked, T>(a[i], b[i], frame, part, range);
    }
#pragma unroll
    for (int k = 0; k < Sweep::kSums; ++k) sums[k] += part[k];
  }
}

// Of two numbers, the one that a lane keeps and the one it sends. In asm: written as ?: it becomes a select of
// addresses, and the array they come from moves to local memory.
__device__ __forceinline__ void split(bool upper, float low, float high, float* kept, float* sent) {
  asm("{ .reg .pred p; setp.ne.s32 p, %4, 0; selp.f32 %0, %3, %2, p; selp.f32 %1, %2, %3, p; }"
      : "=f"(*kept), "=f"(*sent)
      : "f"(low), "f"(high), "r"(static_cast<int>(upper)));
}

// Sums kSlots numbers over the lanes: each step exchanges half of what is left, so that 16 numbers take 16 shuffles
// instead of 80. Lane l returns the total of slot l / (32 / kSlots).
template <int kSlots, int kDistance = kWarp / 2>
__device__ __forceinline__ float totals_over_lanes(const float (&s)[kSlots], int lane) {
  if constexpr (kSlots == 1) {
    float total = s[0];
#pragma unroll
    for (int distance = kDistance; distance > 0; distance /= 2) total += __shfl_xor_sync(kAllLanes, total, distance);
    return total;
  } else {
    const bool upper = (lane & kDistance) != 0;
    float half[kSlots / 2];
#pragma unroll
    for (int i = 0; i < kSlots / 2; ++i) {
      float kept, sent;
      split(upper, s[i], s[i + kSlots / 2], &kept, &sent);
      half[i] = kept + __shfl_xor_sync(kAllLanes, sent, kDistance);
    }
    return totals_over_lanes<kSlots / 2, kDistance / 2>(half, lane);
  }
}

// The sums of a warp, written to out[0 .. kSums). `masked`: some logit of the block is -inf or far below the others;
// the chunk that the end of the row cuts holds -inf in any case.
template <typename Sweep, typename T, typename Source>
__device__ __forceinline__ void sweep_warp(const Source& source, Chunks chunks, int32_t vocab, bool masked, int lane,
                                           const typename Sweep::Frame& frame, float* out, RangeOfD* range) {
  float sums[Sweep::kSlots] = {};
  const int32_t whole = max(chunks.begin, min(chunks.end, vocab / kChunkTokens<T>));
  // Whole chunks first and the cut one apart, in either form: the order of the additions is the same.
#pragma unroll 1
  for (int cut = 0; cut < 2; ++cut) {
    const Chunks now = cut == 0 ? Chunks{chunks.begin, whole} : Chunks{whole, chunks.end};
    if (cut == 0 && !masked && !source.irregular()) {
      add_chunks<Sweep, false, T>(source, now, lane, frame, sums, range);
    } else {
      add_chunks<Sweep, true, T>(source, now, lane, frame, sums, range);
    }
  }
  const float total = totals_over_lanes<Sweep::kSlots>(sums, lane);
  constexpr int kLanesPerSlot = kWarp / Sweep::kSlots;
  const int slot = lane / kLanesPerSlot;
  if (lane % kLanesPerSlot == 0 && slot < Sweep::kSums) out[slot] = total;
}

}  // namespace trb::cuda
