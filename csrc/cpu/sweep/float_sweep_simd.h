// Implements the float32 sweeps of float_sweep.h in the compilers' portable vector types. One file per instruction set
// includes this one after it defines TRB_LANES (floats per vector) and TRB_TABLE (name of the table). Everything here
// is local to that file.
//
// Instructions per vector of token pairs with AVX-512, approximately: scan 9, ends 58 (41 if gentle), direct 24, fan
// 55, stable 49, residual 40.
#include <cstdint>
#include <cstring>

#include "../../solver/limits.h"
#include "block_weights_simd.h"
#include "float_sweep.h"
#include "float_vector_simd.h"
#include "segment_reader_simd.h"

namespace {

constexpr int64_t kFlush = 64;  // vectors per addition of the float accumulators to double ones
// Vectors that are first summed separately if the sums decide. In a peaked row, small weights would otherwise lose
// digits when they are added to a large one.
constexpr int64_t kRun = 16;
static_assert(kTokens % (kFlush * kLanes) == 0 && kFlush % kRun == 0, "flushes end with the block");
constexpr float kUnclampedRange = 300.0f;  // nats: e^{-300 / 4} is still a normal float
// Nats of D that a gentle segment spans at most. From 32 on, interpolated nodes cost some kinds of rows another sweep.
constexpr float kGentleRange = 24.0f;

template <typename Row>
void scan_segment(const trb::cpu::Segment& segment, float inverse_temperature, trb::cpu::SegmentScan* out) {
  Float max_a = splat(-__builtin_inff()), max_b = max_a, max_gap = max_a;
  Float min_a = splat(__builtin_inff()), min_gap = min_a;
  Int unordered = {};
  each_pair<Row, false>(segment, 0, segment.blocks * kTokens, [&](Float a, Float b) __attribute__((always_inline)) {
    const Float gap = b - a;
    max_a = larger(max_a, a);
    max_b = larger(max_b, b);
    min_a = smaller(min_a, a);
    max_gap = larger(max_gap, gap);
    min_gap = smaller(min_gap, gap);
    unordered |= gap != gap;
  });
  out->max_student = highest(max_a);
  out->max_teacher = highest(max_b);
  out->min_gap = lowest(min_gap);
  out->max_gap = highest(max_gap);
  // The teacher's smallest logit is at least the student's smallest plus the smallest gap. All comparisons are false
  // for infinities and NaN.
  const float low_a = lowest(min_a), range_a = (out->max_student - low_a) * inverse_temperature;
  const float range_b = (out->max_teacher - low_a - out->min_gap) * inverse_temperature;
  const float range = (out->max_gap - out->min_gap) * inverse_temperature;
  // A NaN may not reach the sums of the unmasked form: its payload's bits would become those of an ordinary weight.
  bool all_ordered = true;
  for (int64_t lane = 0; lane < kLanes; ++lane) all_ordered = all_ordered && unordered[lane] == 0;
  out->masked = !(all_ordered && range_a < kUnclampedRange && range_b < kUnclampedRange);
  out->gentle =
      !out->masked && range < kGentleRange && range_a < 0.5f * kUnclampedRange && range_b < 0.5f * kUnclampedRange;
}

// kNodes = 5 sums at every quarter of beta, from fourth roots of the weights at the ends. kNodes = 3 sums at every
// half, from square roots.
template <typename Row, bool kMasked, int kNodes>
void sweep_ends(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::EndsSums* out) {
  constexpr int kLast = kNodes - 1;
  const float root = trb::kLog2eFloat / kLast * frame.inverse_temperature;
  const Float none = splat(-__builtin_inff());
  Double sum[kNodes][4] = {}, fourth = {}, lost_a = {}, lost_b = {};
  Float min_d = splat(__builtin_inff()), max_d = none;
  Int unordered = {};
  for (int64_t block = 0; block < segment.blocks; ++block) {
    Double zero_before = sum[0][0], one_before = sum[kLast][0], lost_before = lost_a;
    for (int64_t begin = block * kTokens; begin < (block + 1) * kTokens; begin += kFlush * kLanes) {
      Float s[kNodes][4] = {}, s04 = {}, la = {}, lb = {}, zero = {}, one = {};
      const auto add = [&](Float a, Float b) __attribute__((always_inline)) {
        // 1. D and the roots of the weights at both ends come from a vector of token pairs.
        const Float x = a - frame.max_student, y = b - frame.max_teacher;
        Float d = (y - x) * frame.inverse_temperature - frame.center;
        Float p = exp2_of<kMasked>(x * root), q = exp2_of<kMasked>(y * root);
        // 2. Tokens outside the common support add only to the mass that their model loses.
        if (kMasked) {
          const Int common = (a > none) & (b > none);
          const Float p2 = p * p, q2 = q * q;
          unordered |= (a != a) | (b != b);  // the mask below would hide a NaN, which otherwise reaches every sum
          la += keep(~common & (a > none), p2 * p2);
          lb += keep(~common & (b > none), q2 * q2);
          p = keep(common, p);
          q = keep(common, q);
          d = keep(common, d);
          min_d = smaller(min_d, common ? d : splat(__builtin_inff()));
          max_d = larger(max_d, common ? d : none);
        }
        // 3. Products of the roots are the weights at all nodes, and each node adds w D^k.
        const Float d2 = d * d, d3 = d2 * d, p2 = p * p, q2 = q * q, pq = p * q;
        Float w[kNodes];
        if constexpr (kNodes == 5) {
          w[0] = p2 * p2, w[1] = p2 * pq, w[2] = p2 * q2, w[3] = pq * q2, w[4] = q2 * q2;
          s04 += w[0] * (d2 * d2);
        } else {
          w[0] = p2, w[1] = pq, w[2] = q2;
        }
        for (int node = 0; node < kNodes; ++node) {
          s[node][0] += w[node];
          s[node][1] += w[node] * d;
          s[node][2] += w[node] * d2;
          s[node][3] += w[node] * d3;
        }
      };
      // 4. The sums of both ends restart at each run, because log sum e^x enters every divergence and tokens are drawn
      // from both.
      for (int64_t part = begin; part < begin + kFlush * kLanes; part += kRun * kLanes) {
        each_pair<Row>(segment, part, part + kRun * kLanes, add);
        zero += s[0][0], one += s[kLast][0];
        s[0][0] = s[kLast][0] = Float{};
      }
      s[0][0] = zero, s[kLast][0] = one;
      // 5. The float accumulators are added to double ones.
      for (int node = 0; node < kNodes; ++node)
        for (int k = 0; k < 4; ++k) flush(sum[node][k], s[node][k]);
      if (kNodes == 5) flush(fourth, s04);
      if (kMasked) flush(lost_a, la), flush(lost_b, lb);
    }
    // 6. The masses from which a token is drawn are kept per block.
    Double student = sum[0][0] - zero_before;
    if (kMasked) student += lost_a - lost_before;
    out->student[block] = total(student);
    out->one[block] = total(sum[kLast][0] - one_before);
  }
  // 7. The lanes are added up, and a fault is found.
  std::memset(out->node, 0, sizeof out->node);
  for (int node = 0; node < kNodes; ++node)
    for (int k = 0; k < 4; ++k) out->node[node * (4 / kLast)][k] = total(sum[node][k]);
  out->fourth = total(fourth);
  // The sums of weights are finite for every D, unless a logit was NaN or +inf (inf - inf is NaN).
  const double weights = out->node[0][0] + out->node[4][0];
  out->fault = !(weights - weights == 0.0);
  for (int64_t lane = 0; lane < kLanes; ++lane) out->fault = out->fault || unordered[lane] != 0;
  out->lost_student = total(lost_a);
  out->lost_teacher = total(lost_b);
  out->min_d = lowest(min_d);
  out->max_d = highest(max_d);
}

template <typename Row>
void gentle_ends(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::EndsSums* out) {
  sweep_ends<Row, false, 3>(segment, frame, out);
}

template <typename Row, bool kMasked>
void steep_ends(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::EndsSums* out) {
  sweep_ends<Row, kMasked, 5>(segment, frame, out);
}

// Sums float32 terms over a block. `add(a, b, s)` adds a vector of token pairs to the kSums accumulators s, which
// restart at 0 every kRun vectors.
template <typename Row, int kSums, typename Add>
TRB_INLINE void sum_block(const trb::cpu::Segment& segment, int64_t block, double* out, const Add& add) {
  Double sum[kSums] = {};
  for (int64_t begin = block * kTokens; begin < (block + 1) * kTokens; begin += kFlush * kLanes) {
    Float runs[kSums] = {};
    for (int64_t part = begin; part < begin + kFlush * kLanes; part += kRun * kLanes) {
      Float s[kSums] = {};
      each_pair<Row>(segment, part, part + kRun * kLanes,
                     [&](Float a, Float b) __attribute__((always_inline)) { add(a, b, s); });
      for (int k = 0; k < kSums; ++k) runs[k] += s[k];
    }
    for (int k = 0; k < kSums; ++k) flush(sum[k], runs[k]);
  }
  for (int k = 0; k < kSums; ++k) out[k] = total(sum[k]);
}

// Sums the direct form at kNodes equally spaced betas: 1, or the 5 of a fan, which takes one more exponential.
template <typename Row, bool kMasked, int kNodes>
void sweep_weights(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::BlockSums* out) {
  const float scale = trb::kLog2eFloat * frame.inverse_temperature, slope = trb::kLog2eFloat * frame.beta,
              shift = frame.shift, spacing = trb::kLog2eFloat * frame.spacing;
  const Float none = splat(-__builtin_inff());
  const auto add = [&](Float a, Float b, Float* s) __attribute__((always_inline)) {
    // 1. D and the weight at the first beta come from one exponential.
    const Float x = a - frame.max_student;
    Float d = ((b - frame.max_teacher) - x) * frame.inverse_temperature - frame.center;
    Float w = exp2_of((x * scale - shift) + d * slope);
    if (kMasked) {
      const Int common = (a > none) & (b > none);
      w = keep(common, w);
      d = keep(common, d);
    }
    // 2. One node adds w D^k. For a fan, each further weight is the one before times e^{spacing D}.
    if constexpr (kNodes == 1) {
      const Float wd = w * d, wd2 = wd * d;
      s[0] += w;
      s[1] += wd;
      s[2] += wd2;
      s[3] += wd2 * d;
    } else {
      const Float growth = exp2_of(d * spacing), d2 = d * d, d3 = d2 * d;
      for (int node = 0; node < kNodes; ++node) {
        s[4 * node] += w;
        s[4 * node + 1] += w * d;
        s[4 * node + 2] += w * d2;
        s[4 * node + 3] += w * d3;
        w *= growth;
      }
    }
  };
  for (int64_t block = 0; block < segment.blocks; ++block)
    sum_block<Row, 4 * kNodes>(segment, block, out[block].s, add);
}

template <typename Row, bool kMasked>
void sweep_direct(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::BlockSums* out) {
  sweep_weights<Row, kMasked, 1>(segment, frame, out);
}

template <typename Row, bool kMasked>
void sweep_fan(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::BlockSums* out) {
  sweep_weights<Row, kMasked, 5>(segment, frame, out);
}

template <typename Row, bool kMasked>
void sweep_stable(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::BlockSums* out) {
  const float scale = trb::kLog2eFloat * frame.inverse_temperature;
  const Float none = splat(-__builtin_inff());
  const auto add = [&](Float a, Float b, Float* s) __attribute__((always_inline)) {
    // 1. v = beta D, p = e^x and w = p e^v, which are 0 outside the common support.
    const Float x = a - frame.max_student, t = x * scale;
    Float v = (((b - frame.max_teacher) - x) * frame.inverse_temperature - frame.center) * frame.beta;
    Float p = exp2_of(t);
    if (kMasked) {
      const Int common = (a > none) & (b > none);
      p = keep(common, p);
      v = keep(common, v);
    }
    Float w = exp2_of(t + v * trb::kLog2eFloat);  // not p e^v, which overflows if p is tiny
    if (kMasked) w = keep((a > none) & (b > none), w);
    // 2. h(v) = e^v - 1 - v is taken by its Taylor series if v is small, because the difference would cancel (error
    // 2e-9 at |v| = 0.35).
    const Float v2 = v * v, pv = p * v;
    Float series = v * (1.0f / 40320) + 1.0f / 5040;
    series = v * series + 1.0f / 720;
    series = v * series + 1.0f / 120;
    series = v * series + 1.0f / 24;
    series = v * series + 1.0f / 6;
    series = v * series + 0.5f;
    const Int small = v2 < 0.1225f;
    const Float curved = p * (v2 * series);
    // 3. Otherwise p h and p g come from w. e^v - 1 is not computed as h + v, because for v far below 0 that sum would
    // be only rounding.
    const Float pg = small ? curved + pv : w - p, ph = small ? curved : pg - pv;
    // 4. The six sums of the stable form are p, p v, p h, p g, w v^2 and w v^3.
    const Float wv2 = w * v2;
    s[0] += p;
    s[1] += pv;
    s[2] += ph;
    s[3] += v * pg;
    s[4] += wv2;
    s[5] += wv2 * v;
  };
  for (int64_t block = 0; block < segment.blocks; ++block) sum_block<Row, 6>(segment, block, out[block].s, add);
}

// Sums max(mu - pi_S, 0) with p = pi_S and mu = p e^v. If v is small, the difference is p times the Taylor series of
// e^v - 1 (error 3e-8 at |v| = 0.35), because mu - pi_S would cancel.
template <typename Row, bool kMasked>
void sweep_residual(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::BlockSums* out) {
  const float scale = trb::kLog2eFloat * frame.inverse_temperature;
  const Float none = splat(-__builtin_inff());
  const auto add = [&](Float a, Float b, Float* s) __attribute__((always_inline)) {
    const Float x = a - frame.max_student, t = x * scale - frame.shift;
    const Float d = ((b - frame.max_teacher) - x) * frame.inverse_temperature - frame.center;
    const Float v = d * frame.beta - frame.log_gain, p = exp2_of(t);
    Float series = v * (1.0f / 5040) + 1.0f / 720;
    series = v * series + 1.0f / 120;
    series = v * series + 1.0f / 24;
    series = v * series + 1.0f / 6;
    series = v * series + 0.5f;
    const Float pv = p * v, gain = v < 0.35f ? pv * v * series + pv : exp2_of(t + v * trb::kLog2eFloat) - p;
    Int counts = v > 0.0f;  // false for NaN
    if (kMasked) counts &= (a > none) & (b > none);
    s[0] += keep(counts, gain);
  };
  for (int64_t block = 0; block < segment.blocks; ++block) sum_block<Row, 1>(segment, block, out[block].s, add);
}

void log_in_place(float* values, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t bytes = (count - i < kLanes ? count - i : kLanes) * static_cast<int64_t>(sizeof(float));
    Float value = splat(1.0f);
    std::memcpy(&value, values + i, bytes);
    value = log_of(value);
    std::memcpy(values + i, &value, bytes);
  }
}

template <typename Row, bool kMasked>
void write_log_probs(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, int64_t count, float* out) {
  const Float lowest = splat(-__builtin_inff());
  const bool student_only = frame.beta == 0.0f, teacher_only = frame.beta == 1.0f;
  const float for_student = (1.0f - frame.beta) * frame.inverse_temperature,
              for_teacher = frame.beta * frame.inverse_temperature;
  const auto log_probs = [&](int64_t i) __attribute__((always_inline)) {
    const Float a = Row::load_in_order(segment.student, i), b = Row::load_in_order(segment.teacher, i);
    const Float x = a - frame.max_student, y = b - frame.max_teacher;
    if (!kMasked) return x * for_student + (y * for_teacher - frame.shift);
    // At the ends the other model's logit may be -inf, and 0 * -inf is NaN.
    const Float t = student_only   ? x * for_student - frame.shift
                    : teacher_only ? y * for_teacher - frame.shift
                                   : x * for_student + (y * for_teacher - frame.shift);
    return (student_only ? a > lowest : (a > lowest) & (b > lowest)) ? t : lowest;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Float t = log_probs(i);
    std::memcpy(out + i, &t, sizeof t);
  }
  if (i < count) {
    const Float t = log_probs(i);
    std::memcpy(out + i, &t, (count - i) * sizeof(float));
  }
}

#define TRB_BY_ROW(function, ...) \
  segment.bfloat16 ? function<BFloat16>(segment, __VA_ARGS__) : function<Float32>(segment, __VA_ARGS__)
#define TRB_BY_ROW_AND_MASK(function, ...)                                             \
  segment.masked ? (segment.bfloat16 ? function<BFloat16, true>(segment, __VA_ARGS__)  \
                                     : function<Float32, true>(segment, __VA_ARGS__))  \
                 : (segment.bfloat16 ? function<BFloat16, false>(segment, __VA_ARGS__) \
                                     : function<Float32, false>(segment, __VA_ARGS__))

void scan(const trb::cpu::Segment& segment, float inverse_temperature, trb::cpu::SegmentScan* out) {
  TRB_BY_ROW(scan_segment, inverse_temperature, out);
}
void ends(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, bool gentle, trb::cpu::EndsSums* out) {
  if (gentle) {
    TRB_BY_ROW(gentle_ends, frame, out);
  } else {
    TRB_BY_ROW_AND_MASK(steep_ends, frame, out);
  }
}
void direct(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::BlockSums* out) {
  TRB_BY_ROW_AND_MASK(sweep_direct, frame, out);
}
void fan(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::BlockSums* out) {
  TRB_BY_ROW_AND_MASK(sweep_fan, frame, out);
}
void stable(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::BlockSums* out) {
  TRB_BY_ROW_AND_MASK(sweep_stable, frame, out);
}
void residual(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, trb::cpu::BlockSums* out) {
  TRB_BY_ROW_AND_MASK(sweep_residual, frame, out);
}
void log_probs(const trb::cpu::Segment& segment, const trb::cpu::SweepFrame& frame, int64_t count, float* out) {
  TRB_BY_ROW_AND_MASK(write_log_probs, frame, count, out);
}

}  // namespace

namespace trb::cpu {
extern const SweepTable TRB_TABLE;
const SweepTable TRB_TABLE = {TRB_ISA, scan,     ends,      direct,       fan,
                              stable,  residual, log_probs, log_in_place, block_weights};
}  // namespace trb::cpu
