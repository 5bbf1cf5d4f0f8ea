// Sweeps a strip and adds up the sums of its lanes.
//
// Reduction order: a lane adds its tokens in token order; with paired arithmetic it adds those at even and at odd
// places of a vector apart, and then both. A strip of a streamed row may be long, and one chain of a thousand float
// additions would cost three digits, so its sum is added to a second accumulator after at most kFlushTokens of them. A
// strip on chip has hardly more than that: 13 KB of either model, 216 tokens of a lane. A fixed tree then adds the
// lanes.
#pragma once

#include "../row_source.cuh"
#include "sweep_terms.cuh"

namespace trb::cuda {

constexpr int kFlushTokens = 128;

// What a sweep adds at once: two tokens or one.
#ifdef TRB_PAIRED_ARITHMETIC
template <typename Sweep>
using NumberOf = std::conditional_t<Sweep::kPaired, FloatPair, float>;
#else
template <typename Sweep>
using NumberOf = float;
#endif

// The sums of a strip. Those of a streamed row are totals, because its second accumulator takes registers already.
template <typename Sweep, typename Source>
using SumsOf = std::conditional_t<Source::kResident, NumberOf<Sweep>, float>[Sweep::kSums + Sweep::kUnused];

// Adds the chunks to `sums`. The masked form is correct for every chunk; the other form needs whole chunks of a regular
// row that masks nothing.
template <typename Sweep, bool kMasked, typename T, typename Source>
__device__ __forceinline__ void add_chunks(const Source& source, Chunks chunks, int lane,
                                           const typename Sweep::Frame& frame, SumsOf<Sweep, Source>& sums,
                                           RangeOfD* range) {
  using Number = NumberOf<Sweep>;
  constexpr int kTokens = LogitVector<T>::kTokens, kFlush = kFlushTokens / kTokens;
  const auto add = [&](int32_t chunk, Number* to) {
    uint4 student, teacher;
    source.template vectors<kMasked>(chunk, lane, &student, &teacher);
    float a[kTokens], b[kTokens];
    LogitVector<T>::unpack(student, a);
    LogitVector<T>::unpack(teacher, b);
    constexpr int kWidth = sizeof(Number) / sizeof(float);
#pragma unroll
    for (int i = 0; i < kTokens; i += kWidth) {
      if constexpr (kWidth == 2) {
        Sweep::template add<kMasked, T>(Number(a[i], a[i + 1]), Number(b[i], b[i + 1]), frame, to, range);
      } else {
        Sweep::template add<kMasked, T>(a[i], b[i], frame, to, range);
      }
    }
  };
  if constexpr (Source::kResident) {
#pragma unroll 1
    for (int32_t chunk = chunks.begin; chunk < chunks.end; ++chunk) add(chunk, sums);
  } else {
#pragma unroll 1
    for (int32_t begin = chunks.begin; begin < chunks.end; begin += kFlush) {
      const int32_t end = min(begin + kFlush, chunks.end);
      Number part[Sweep::kSums] = {};
#pragma unroll 1
      for (int32_t chunk = begin; chunk < end; ++chunk) add(chunk, part);
#pragma unroll
      for (int k = 0; k < Sweep::kSums; ++k) sums[k] += total(part[k]);
    }
  }
}

// Writes the sums of a strip to out[0 .. kSums). `masked` says that some logit of the section is -inf or far below the
// others. The chunk that the end of the row cuts holds -inf in any case, so it always needs the masked form.
template <typename Sweep, typename T, typename Source>
__device__ __forceinline__ void sweep_strip(const Source& source, Chunks chunks, int32_t vocab, bool masked,
                                            unsigned lane, const typename Sweep::Frame& frame, float* out,
                                            RangeOfD* range) {
  constexpr int kMasked = Sweep::kMasked, kSlots = Sweep::kSums - kMasked + Sweep::kUnused;
  SumsOf<Sweep, Source> sums = {};
  const int32_t whole = max(chunks.begin, min(chunks.end, vocab / kChunkTokens<T>));
  const bool regular = !masked && !source.irregular();
  if (regular) add_chunks<Sweep, false, T>(source, {chunks.begin, whole}, lane, frame, sums, range);
  if constexpr (Source::kResident) {
    const int32_t rest = regular ? whole : chunks.begin;
    if (rest < chunks.end) add_chunks<Sweep, true, T>(source, {rest, chunks.end}, lane, frame, sums, range);
  } else {
    // Whole chunks come first and the cut one by itself in either form, so that the order of additions is the same.
    const int pieces = whole < chunks.end ? 2 : 1;
#pragma unroll 1
    for (int piece = regular ? 1 : 0; piece < pieces; ++piece) {
      const Chunks now = piece == 0 ? Chunks{chunks.begin, whole} : Chunks{whole, chunks.end};
      add_chunks<Sweep, true, T>(source, now, lane, frame, sums, range);
    }
  }
  float usual[kSlots];
#pragma unroll
  for (int k = 0; k < kSlots; ++k) usual[k] = total(sums[k]);
  constexpr unsigned kLanesPerSlot = kWarp / kSlots;
  const unsigned slot = lane / kLanesPerSlot;
  store_if((lane % kLanesPerSlot == 0) & (slot < kSlots - Sweep::kUnused), out + slot,
           totals_over_lanes<kSlots>(usual, lane));
  // The sums that only a masked row has are added up only for one.
  if constexpr (kMasked > 0) {
    float more[kMasked];
#pragma unroll
    for (int k = 0; k < kMasked; ++k) more[k] = total(sums[kSlots + k]);
    const float of_masked = masked ? totals_over_lanes<kMasked>(more, lane) : 0.0f;
    constexpr unsigned kLanesPerSum = kWarp / kMasked;
    store_if(lane % kLanesPerSum == 0, out + kSlots + lane / kLanesPerSum, of_masked);
  }
}

}  // namespace trb::cuda
