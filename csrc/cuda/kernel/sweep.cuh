// Sweeps a warp's chunks and adds up the sums of its lanes.
//
// Reduction order: a lane adds its tokens in token order. After at most kFlushTokens of them it adds the sum to a
// second accumulator, because one chain of a thousand float additions would cost three digits. A fixed tree then adds
// the lanes.
#pragma once

#include "row_source.cuh"
#include "sweep_terms.cuh"

namespace trb::cuda {

constexpr int kFlushTokens = 128;

// Adds the chunks to `sums`. The masked form is correct for every chunk; the other form needs whole chunks of a regular
// row that masks nothing.
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

// Writes the sums of a warp to out[0 .. kSums). `masked` says that some logit of the block is -inf or far below the
// others. The chunk that the end of the row cuts holds -inf in any case, so it always needs the masked form.
template <typename Sweep, typename T, typename Source>
__device__ __forceinline__ void sweep_warp(const Source& source, Chunks chunks, int32_t vocab, bool masked,
                                           unsigned lane, const typename Sweep::Frame& frame, float* out,
                                           RangeOfD* range) {
  float sums[Sweep::kSlots] = {};
  const int32_t whole = max(chunks.begin, min(chunks.end, vocab / kChunkTokens<T>));
  const bool regular = !masked && !source.irregular();
  // Whole chunks come first and the cut one by itself in either form, so that the order of additions is the same.
  if (regular) add_chunks<Sweep, false, T>(source, {chunks.begin, whole}, lane, frame, sums, range);
  const int pieces = whole < chunks.end ? 2 : 1;
#pragma unroll 1
  for (int piece = regular ? 1 : 0; piece < pieces; ++piece) {
    const Chunks now = piece == 0 ? Chunks{chunks.begin, whole} : Chunks{whole, chunks.end};
    add_chunks<Sweep, true, T>(source, now, lane, frame, sums, range);
  }
  const float total = totals_over_lanes<Sweep::kSlots>(sums, lane);
  constexpr unsigned kLanesPerSlot = kWarp / Sweep::kSlots;
  const unsigned slot = lane / kLanesPerSlot;
  store_if((lane % kLanesPerSlot == 0) & (slot < Sweep::kSums), out + slot, total);
}

}  // namespace trb::cuda
