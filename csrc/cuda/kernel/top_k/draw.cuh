// Draws the token of a row whose teacher is k tokens, by one warp, in token order: the token block by the masses that
// the sweep left, then the token by the weights of that block, which is read again. Also the log-probabilities of a
// token.
#pragma once

#include <cfloat>

#include "state.cuh"

namespace trb::cuda {

// The mass of mu, or of max(mu - pi_S, 0), on tokens whose mass under mu is e^log_mu and which share one value of
// log(mu / pi_S) (csrc/cpu/top_k_row.cpp). Not inlined, because of its exponentials.
__device__ __noinline__ double mass_of(double log_mu, double log_ratio, bool residual) {
  if (!residual) return ::exp(log_mu);
  return log_ratio > 0.0 ? -::expm1(-log_ratio) * ::exp(log_mu) : 0.0;
}

// The mass of a listed token.
__device__ __forceinline__ double listed_mass(const TopKRow& row, int64_t place, bool residual) {
  const Outcome of = row.outcome(place);
  const double log_mu = row.log_mu(of);
  return mass_of(log_mu, log_mu - (of.student - row.state.log_student), residual);
}

// All lanes: writes the masses of the token blocks. Lane l has the blocks l, l + 32, .., which `choose` reads by the
// same lane, so that no barrier is needed between them.
__device__ __forceinline__ void find_masses(const TopKRow& row, bool residual) {
  // 1. Those of the rest.
  const TopKState& state = row.state;
  const int64_t blocks = block_count(row.student.vocab);
#pragma unroll 1
  for (int64_t block = row.lane; block < blocks; block += kWarp) {
    const BlockWeight weight = row.weights[block];
    double mass = 0.0;
    if (weight.mass > 0.0f) {
      const double share = row.log_share_of_rest(weight.peak) + ::log(static_cast<double>(weight.mass));
      mass = mass_of(state.log_mu_of_rest + share, state.rest_ratio, residual);
      // A subnormal mass counts as none: its tokens' shares could all be 0, and no token would be drawn.
      if (mass < DBL_MIN) mass = 0.0;
    }
    row.masses[block] = mass;
  }
  // 2. Those of the listed tokens, which the lane that has their block adds in the order of the list.
#pragma unroll 1
  for (int64_t first = 0; first < row.args.teacher.k; first += kWarp) {
    const int64_t place = first + row.lane;
    const int64_t token = place < row.args.teacher.k ? row.id(place) : -1;
    const int own_block = token < 0 ? -1 : static_cast<int>(token / kBlock);
    const double own_mass = token < 0 ? 0.0 : listed_mass(row, place, residual);
#pragma unroll 1
    for (int from = 0; from < kWarp; ++from) {
      const int block = __shfl_sync(kAllLanes, own_block, from);
      const double mass = __shfl_sync(kAllLanes, own_mass, from);
      if (block >= 0 && block % kWarp == row.lane) row.masses[block] += mass;
    }
  }
}

struct Chosen {
  int64_t index;         // -1: no mass
  double before, total;  // of the masses
};

// All lanes: the first of `count` masses at which the running sum exceeds `target`. If rounding leaves the target
// unreached, the last positive one.
__device__ __forceinline__ Chosen choose(const double* masses, int64_t count, double scale, double before,
                                         double target, int lane) {
  Chosen chosen{-1, 0.0, before};
#pragma unroll 1
  for (int64_t first = 0; first < count; first += kWarp) {
    const double own = first + lane < count ? masses[first + lane] : 0.0;
    const double up_to = chosen.total + sum_up_to_lane(own, lane) * scale;
    const unsigned positive = __ballot_sync(kAllLanes, own > 0.0);
    const unsigned beyond = __ballot_sync(kAllLanes, own > 0.0 && up_to > target);
    const int at = beyond != 0 ? __ffs(beyond) - 1 : 31 - __clz(positive);
    if (positive != 0) {
      chosen.index = first + at;
      chosen.before = __shfl_sync(kAllLanes, up_to - own * scale, at);
    }
    chosen.total = __shfl_sync(kAllLanes, up_to, kWarp - 1);
    if (beyond != 0) break;
  }
  return chosen;
}

// All lanes: the token that `uniform` draws from mu, or from max(mu - pi_S, 0); -1 if there is no mass.
__device__ __forceinline__ int64_t draw_token(const TopKRow& row, bool residual, double uniform) {
  // 1. The token block.
  TopKState& state = row.state;
  find_masses(row, residual);
  const int64_t blocks = block_count(row.student.vocab);
  const double total = choose(row.masses, blocks, 1.0, 0.0, INFINITY, row.lane).total, target = uniform * total;
  const Chosen block = choose(row.masses, blocks, 1.0, 0.0, target, row.lane);
  if (block.index < 0) return -1;
  // 2. The weights of its tokens, those of the listed ones last.
  const int64_t begin = block.index * kBlock, count = min(kBlock, row.student.vocab - begin);
#pragma unroll 1
  for (int64_t i = row.lane; i < count; i += kWarp) {
    const double share = row.log_share_of_rest(row.student.logit(begin + i));
    state.weight[i] = mass_of(state.log_mu_of_rest + share, state.rest_ratio, residual);
  }
  __syncwarp();
#pragma unroll 1
  for (int64_t place = row.lane; place < row.args.teacher.k; place += kWarp) {
    const int64_t token = row.id(place);
    if (token >= begin && token < begin + count) state.weight[token - begin] = listed_mass(row, place, residual);
  }
  __syncwarp();
  // 3. The token, by weights that add up to the mass of the block.
  const double sum = choose(state.weight, count, 1.0, 0.0, INFINITY, row.lane).total;
  if (!(sum > 0.0)) return -1;
  const double unit = row.masses[block.index] / sum;
  const Chosen token = choose(state.weight, count, unit, block.before, target, row.lane);
  return token.index < 0 ? -1 : begin + token.index;
}

// All lanes: the log-probabilities of a token.
__device__ __forceinline__ LogProbs log_probs_at(const TopKRow& row, int64_t token) {
  const TopKState& state = row.state;
#pragma unroll 1
  for (int64_t first = 0; first < row.args.teacher.k; first += kWarp) {
    const int64_t place = first + row.lane;
    const unsigned here = __ballot_sync(kAllLanes, place < row.args.teacher.k && row.id(place) == token);
    if (here == 0) continue;
    const Outcome of = row.outcome(first + __ffs(here) - 1);
    return {of.student - state.log_student, of.teacher, row.log_mu(of)};
  }
  const double x = row.in_frame(token), share = row.log_share_of_rest(row.student.logit(token));
  if (x == -INFINITY) return {-INFINITY, -INFINITY, -INFINITY};
  return {x - state.log_student, state.rest.teacher + share, state.log_mu_of_rest + share};
}

}  // namespace trb::cuda
