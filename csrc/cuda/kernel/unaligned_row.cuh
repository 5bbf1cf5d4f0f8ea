// Reads a contiguous row that does not begin at a multiple of 16 bytes, by 16-byte loads. A warp loads the aligned
// vectors that overlap the wanted ones, and shifts each two neighbors into place. Bytes before the first and after the
// last aligned vector are read logit by logit, so that every byte is read once even if another warp's share begins
// within a vector. This takes about 30 instructions per vector more than an aligned row, but saves a load per logit.
#pragma once

#include "logits_row.cuh"

namespace trb::cuda {

template <typename T>
class UnalignedRow {
 public:
  __device__ __forceinline__ explicit UnalignedRow(const LogitsRow& row)
      : past_(row.bytes_past_alignment()), aligned_(row.data - past_) {}

  __device__ __forceinline__ uint4 load(int32_t vector) const {
    return *reinterpret_cast<const uint4*>(aligned_ + int64_t{vector} * kVectorBytes);
  }
  // The part of an aligned vector that belongs to the wanted vector of the same index, and the part that belongs to the
  // one before.
  __device__ __forceinline__ uint4 later_part(int32_t vector) const { return part(vector, past(), kTokens); }
  __device__ __forceinline__ uint4 earlier_part(int32_t vector) const { return part(vector, 0, past()); }

  // The wanted vector, from the aligned vector in which it begins and the next one.
  __device__ __forceinline__ uint4 joined(uint4 first, uint4 second) const {
    const bool two = (past_ & 8) != 0, one = (past_ & 4) != 0;
    const int bits = 8 * (past_ & 3);
    const uint32_t v0 = two ? first.z : first.x, v1 = two ? first.w : first.y, v2 = two ? second.x : first.z,
                   v3 = two ? second.y : first.w, v4 = two ? second.z : second.x, v5 = two ? second.w : second.y;
    const uint32_t w0 = one ? v1 : v0, w1 = one ? v2 : v1, w2 = one ? v3 : v2, w3 = one ? v4 : v3, w4 = one ? v5 : v4;
    return make_uint4(__funnelshift_r(w0, w1, bits), __funnelshift_r(w1, w2, bits), __funnelshift_r(w2, w3, bits),
                      __funnelshift_r(w3, w4, bits));
  }

 private:
  static constexpr int kTokens = LogitVector<T>::kTokens;

  __device__ __forceinline__ int past() const { return past_ / static_cast<int>(sizeof(T)); }

  __device__ __forceinline__ uint4 part(int32_t vector, int from, int to) const {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
    const Bits* logits = reinterpret_cast<const Bits*>(aligned_ + int64_t{vector} * kVectorBytes);
    uint4 found = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (i >= from && i < to) set_token<T>(i, logits[i], reinterpret_cast<uint32_t*>(&found));
    }
    return found;
  }

  int past_;
  const char* aligned_;
};

// The vectors of a warp's consecutive chunks. All lanes call `next` once per chunk.
template <typename T>
class UnalignedChunks {
 public:
  __device__ __forceinline__ UnalignedChunks(const LogitsRow& row, int32_t first_vector, int lane)
      : row_(row), here_(lane == 0 ? row_.later_part(first_vector) : row_.load(first_vector)) {}

  // `vector` is the lane's vector. `last` is true for the warp's last chunk.
  __device__ __forceinline__ uint4 next(int32_t vector, bool last, int lane) {
    const uint4 below = last ? make_uint4(0, 0, 0, 0) : row_.load(vector + kWarp);
    uint4 after = from_lane_above(here_);
    const uint4 of_next_chunk = from_first_lane(below);
    if (lane == kWarp - 1) after = last ? row_.earlier_part(vector + 1) : of_next_chunk;
    const uint4 wanted = row_.joined(here_, after);
    here_ = below;
    return wanted;
  }

 private:
  UnalignedRow<T> row_;
  uint4 here_;
};

}  // namespace trb::cuda
