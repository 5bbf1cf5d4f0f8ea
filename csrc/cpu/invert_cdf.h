// Draws a token by the inverse of the cumulative distribution in token order, from the masses of the blocks and the
// weights of the tokens of one block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../solver/limits.h"

namespace trb::cpu {

// The first token whose cumulative mass exceeds `uniform` times the total, or -1 if there is no mass. `mass` holds the
// masses of the blocks, and `weigh(begin, count, out)` writes the unnormalized masses of the tokens of one block.
//
// A block or token of mass zero does not advance the running sum, so it is never the first to exceed the target. If
// rounding at u -> 1 leaves the target unreached, the last token of positive mass is drawn.
template <typename Weigh>
int64_t invert_cdf(const std::vector<double>& mass, int64_t vocab, double uniform, const Weigh& weigh) {
  // 1. The block that holds the target.
  double total = 0.0;
  for (double of_block : mass) total += of_block;
  const double target = uniform * total;
  double before = 0.0, running = 0.0;
  int64_t chosen = -1;
  for (int64_t block = 0; block < static_cast<int64_t>(mass.size()); ++block) {
    if (mass[block] <= 0.0) continue;
    chosen = block;
    before = running;
    running += mass[block];
    if (running > target) break;
  }
  if (chosen < 0) return -1;
  // 2. The masses of its tokens, scaled so that they add up to exactly the mass of the block, whatever the rounding of
  // either sum.
  const int64_t begin = chosen * kBlock, count = std::min(kBlock, vocab - begin);
  double weights[kBlock];
  weigh(begin, count, weights);
  const double sum = std::accumulate(weights, weights + count, 0.0);
  if (sum == 0.0) return -1;  // rounding had made up its mass
  const double unit = mass[chosen] / sum;
  // 3. The token that holds the target.
  int64_t token = -1;
  double within = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    if (weights[i] == 0.0) continue;
    token = begin + i;
    within += weights[i];
    if (before + within * unit > target) break;
  }
  return token;
}

}  // namespace trb::cpu
