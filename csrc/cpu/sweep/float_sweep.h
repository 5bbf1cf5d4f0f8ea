// Declares the float32 sweeps over one segment of both models' rows: a table of functions, with one implementation per
// instruction set.
//
// This header holds plain data only. It is compiled with different -m flags, so nothing in it may become a weak symbol.
//
// With x = (a - max a) / T, y = (b - max b) / T and D = y - x - center (from the maxima, so that a constant offset
// between the models costs no digits), each sweep sums, over the common support C of the segment,
//   ends     w D^k, k = 0..3, for w = e^x e^{beta (y - x)} at beta = 0, 1/4, .., 1 from two exponentials per token:
//            p^4, p^3 q, .., q^4 with p = e^{x/4}, q = e^{y/4}. A gentle segment is summed at 0, 1/2, 1 only. These
//            sums narrow the solver's bracket and do not decide
//   direct   w D^k for w = e^{x + beta D - kappa}: one exponential
//   fan      the same at five equally spaced betas, from two exponentials
//   stable   p, p v, p h(v), p g(v), w v^2, w v^3 for p = e^x, v = beta D, w = p e^v, h = e^v - 1 - v,
//            g = v (e^v - 1). All large terms are non-negative, so that a small KL is accurate relative to itself. Two
//            exponentials
//   residual max(mu - pi_S, 0), from which the token that replaces a rejected draft is drawn
// A float accumulator takes at most 64 additions before it is added to a double one.
#pragma once

#include <cstdint>

namespace trb::cpu {

// Blocks per segment. 32 KB of float32 logits of both models: scanned for their maxima, then swept from the first-level
// cache.
constexpr int64_t kSegmentBlocks = 4;

// kSegmentBlocks blocks of both rows (the last segment may have fewer), contiguous. Padding is -inf in both rows.
struct Segment {
  const void* student;
  const void* teacher;
  bool bfloat16;   // else float32; the same for both rows
  int64_t blocks;  // of kBlock tokens
  bool masked;     // some logit is -inf, or so far below the maxima that exponents need a clamp
};

struct SegmentScan {
  float max_student, max_teacher;  // -inf if the segment has no finite logit
  float min_gap, max_gap;          // of b - a; meaningless if masked
  bool masked;                     // see Segment
  bool gentle;                     // not masked, and D has so small a range that TiltInterpolation can be used
};

struct EndsSums {
  double node[5][4];               // sum w D^k over C at beta = 0, 1/4, 1/2, 3/4, 1; 0 at 1/4 and 3/4 if gentle
  double fourth;                   // sum w D^4 at beta = 0; 0 if gentle
  double lost_student;             // sum of e^x over tokens that the teacher masks
  double lost_teacher;             // sum of e^y over tokens that the student masks
  float min_d, max_d;              // over C, only if masked; +inf, -inf if C is empty
  bool fault;                      // some logit is NaN or +inf
  double student[kSegmentBlocks];  // sum of e^x over S, per block
  double one[kSegmentBlocks];      // sum of e^y over C, per block
};

struct SweepFrame {
  float max_student, max_teacher;
  float inverse_temperature;
  float center;
  float beta;
  float spacing;   // fan: sweeps at beta + i spacing, i = 0..4
  float shift;     // direct: kappa log2 e. log_probs: log_norm. residual: log2 of the student's sum of e^x
  float log_gain;  // residual: minus log(mu / pi_S) at D = 0
};

// The sums of one block.
struct BlockSums {
  // direct: w D^k; fan: the same at five betas; stable: p, p v, p h, p g, w v^2, w v^3; residual: max(mu - pi_S, 0)
  double s[20];
};

// The weights of one row's tokens in a block.
struct BlockWeights {
  float peak;   // the largest logit; -inf if the block has no finite one
  double mass;  // sum of e^{(a - peak) / T}; 0 if the block has no finite logit
  bool fault;   // some logit is NaN or +inf
};

struct SweepTable {
  const char* isa;
  void (*scan)(const Segment&, float inverse_temperature, SegmentScan*);
  void (*ends)(const Segment&, const SweepFrame&, bool gentle, EndsSums*);
  void (*direct)(const Segment&, const SweepFrame&, BlockSums*);
  void (*fan)(const Segment&, const SweepFrame&, BlockSums*);
  void (*stable)(const Segment&, const SweepFrame&, BlockSums*);
  void (*residual)(const Segment&, const SweepFrame&, BlockSums*);
  // Writes out[i] = (1 - beta) x + beta y - log_norm for the `count` tokens of the segment; -inf outside the support of
  // mu_beta.
  void (*log_probs)(const Segment&, const SweepFrame&, int64_t count, float* out);
  // Replaces each value by its natural logarithm, NaN below 0.
  void (*log)(float* values, int64_t count);
  // Sums the weights of kBlock contiguous logits, bfloat16 or float32.
  void (*block_weights)(const void* block, bool bfloat16, float inverse_temperature, BlockWeights*);
};

extern const SweepTable kGenericSweeps;
#ifdef TRB_X86
extern const SweepTable kAvx2Sweeps;
extern const SweepTable kAvx512Sweeps;
#endif

}  // namespace trb::cpu
