// Sweeps a row of the student's logits once: the weights of the tokens that the teacher does not list, per token block.
//
// A tile has a token block per warp. Its listed tokens are bits in shared memory, which the threads set from the k ids
// before the tile is read. A bit that was set already is a token that is listed twice. Weights are added by each lane
// in token order and over the lanes in a fixed tree.
#pragma once

#include "state.cuh"

namespace trb::cuda {

// All threads: sets the bits of the listed tokens of a tile.
__device__ __forceinline__ void mark_listed(const TopKRow& row, int64_t tile) {
  for (int64_t place = threadIdx.x; place < row.args.teacher.k; place += kTopKThreads) {
    const int64_t token = row.id(place), in_tile = token - tile * kTileTokens;
    bool fault = token < -1 || token >= row.student.vocab;
    if (!fault && in_tile >= 0 && in_tile < kTileTokens) {
      const uint32_t bit = 1u << in_tile % 32;
      fault = (atomicOr(&row.state.listed[in_tile / 32], bit) & bit) != 0;
    }
    if (fault) atomicOr(&row.state.fault, 1u);
  }
}

// All lanes of a warp: sweeps one token block. Returns the largest logit that the lane has read, listed or not; NaN if
// one is.
__device__ __forceinline__ float sweep_block(const TopKRow& row, int64_t block, int warp) {
  constexpr int kSteps = static_cast<int>(kBlock) / (8 * kWarp);
  float logits[kSteps][8], largest = -INFINITY, peak = -INFINITY;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int in_block = (step * kWarp + row.lane) * 8;
    row.student.load(static_cast<int32_t>(block * kBlock) + in_block, logits[step]);
    const uint32_t word = row.state.listed[(warp * static_cast<int>(kBlock) + in_block) / 32],
                   bits = word >> in_block % 32;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      largest = max_or_nan(largest, logits[step][i]);
      if (bits >> i & 1u) logits[step][i] = -INFINITY;
      peak = fmaxf(peak, logits[step][i]);
    }
  }
  peak = max_over_lanes(peak);
  float sum = 0.0f;
  if (peak > -INFINITY) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += ex2((logits[step][i] - peak) * row.state.temperature.scale);
    }
  }
  const double mass = sum_over_lanes(static_cast<double>(sum));
  if (row.lane == 0) row.weights[block] = {peak, static_cast<float>(mass)};
  return largest;
}

// All threads: sweeps the row, and leaves the weights and warp_max to warp 0 behind a barrier.
__device__ __forceinline__ void sweep_rest(const TopKRow& row, int warp) {
  const int64_t blocks = block_count(row.student.vocab), tiles = (blocks + kTopKWarps - 1) / kTopKWarps;
  float largest = -INFINITY;
#pragma unroll 1
  for (int64_t tile = 0; tile < tiles; ++tile) {
    mark_listed(row, tile);
    __syncthreads();
    const int64_t block = tile * kTopKWarps + warp;
    if (block < blocks) largest = max_or_nan(largest, sweep_block(row, block, warp));
    __syncwarp();  // because each lane clears bits that other lanes have read
    row.state.listed[threadIdx.x] = 0;
    __syncthreads();
  }
  largest = max_over_lanes(largest);
  if (row.lane == 0) row.state.warp_max[warp] = largest;
  __syncthreads();
}

}  // namespace trb::cuda
