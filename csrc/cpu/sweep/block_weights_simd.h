// Sums the weights of one row's tokens per block, in the frame of the block's maximum. Everything here is local to the
// file that includes it.
//
// Instructions per vector of tokens with AVX-512, approximately: 3 for the maximum, 12 for the sum. A block is in the
// first-level cache when it is summed.
#pragma once

#include "segment_reader_simd.h"

namespace {

template <typename Row>
void sum_block_weights(const void* block, float inverse_temperature, trb::cpu::BlockWeights* out) {
  constexpr int64_t kVectors = 8;  // pairs of vectors that are summed as float before they are added to a double
  // 1. The maximum, and whether some logit is NaN, which a maximum may hide.
  Float most = splat(-__builtin_inff());
  Int unordered = {};
  for (int64_t i = 0; i < kTokens; i += 2 * kLanes) {
    Float first, second;
    Row::load(block, i, &first, &second);
    unordered |= (first != first) | (second != second);
    most = larger(larger(most, first), second);
  }
  int32_t nan = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) nan |= unordered[lane];
  const float peak = highest(most);
  out->peak = peak;
  out->mass = 0.0;
  out->fault = nan != 0 || peak == __builtin_inff();
  if (out->fault || !(peak > -__builtin_inff())) return;
  // 2. The sum. A token of logit -inf adds 2^-126, which is nothing beside the 1 of the largest.
  const float root = trb::kLog2eFloat * inverse_temperature;
  Double sum = {};
  for (int64_t begin = 0; begin < kTokens; begin += 2 * kLanes * kVectors) {
    Float part = {};
    const int64_t end = begin + 2 * kLanes * kVectors < kTokens ? begin + 2 * kLanes * kVectors : kTokens;
    for (int64_t i = begin; i < end; i += 2 * kLanes) {
      Float first, second;
      Row::prefetch(block, i + 2 * kTokens);
      Row::load(block, i, &first, &second);
      part += exp2_of((first - peak) * root) + exp2_of((second - peak) * root);
    }
    flush(sum, part);
  }
  out->mass = total(sum);
}

void block_weights(const void* block, bool bfloat16, float inverse_temperature, trb::cpu::BlockWeights* out) {
  if (bfloat16) {
    sum_block_weights<BFloat16>(block, inverse_temperature, out);
  } else {
    sum_block_weights<Float32>(block, inverse_temperature, out);
  }
}

}  // namespace
