// Float32 sweeps over one segment of a row pair, one implementation per instruction set behind a table of functions.
//
// Plain data only: this header is compiled with different -m flags, so nothing in it may become a weak symbol.
//
// With x = (a - max a) / T, y = (b - max b) / T and D = y - x - centre (from the maxima, so that a constant offset
// between the models costs no digits), each sweep sums, over the common support C of the segment,
//   ends     w D^k, k = 0..3, for w = e^x e^{beta (y - x)} at beta = 0, 1/4, .., 1 from two exponentials per token:
//            p^4, p^3 q, .., q^4 with p = e^{x/4}, q = e^{y/4}; of a gentle segment at 0, 1/2, 1. Steers only
//   direct   w D^k for w = e^{x + beta D - kappa}: one exponential
//   fan      the same at five equally spaced betas, from two exponentials
//   stable   p, p v, p h(v), p g(v), w v^2, w v^3 for p = e^x, v = beta D, w = p e^v, h = e^v - 1 - v,
//            g = v (e^v - 1): all large terms are non-negative, so KL keeps its relative accuracy for small budgets.
//            Two exponentials
//   residual max(mu - pi_S, 0), for the draw that replaces a refused draft
// A float accumulator takes at most 64 additions before it is added to a double.
#pragma once

#include <cstdint>

namespace trb::cpu {

constexpr int64_t kSegmentBlocks =
    4;  // 32 KB of float32 pair: scanned for its maxima, then swept from the first-level cache

// Four blocks (the last segment may have fewer) of both rows, contiguous; padding is -inf in both.
struct Segment {
  const void* student;
  const void* teacher;
  bool bfloat16;   // else float32; both rows alike
  int64_t blocks;  // of 1024 tokens
  bool masked;     // some entry is -inf, or far enough below the maxima for exponents to need a clamp
};

struct SegmentScan {
  float max_student, max_teacher;  // -inf where the segment has no finite logit
  float min_gap, max_gap;          // of teacher's minus student's logits; of no use where masked
  bool masked;                     // see Segment
  bool gentle;                     // not masked, and D spans so little that its moments at 0, 1/2, 1 tell the others
};

struct EndsSums {
  double node[5][4];               // sum w D^k at beta = 0, 1/4, 1/2, 3/4, 1, over C; 0 at 1/4, 3/4 where gentle
  double fourth;                   // sum w D^4 at beta = 0; 0 where gentle
  double lost_student;             // e^x of tokens the teacher masks
  double lost_teacher;             // e^y of tokens the student masks
  float min_d, max_d;              // over C, where masked; +inf, -inf where C is empty
  bool fault;                      // NaN or +inf among the logits
  double student[kSegmentBlocks];  // e^x of each block over S
  double one[kSegmentBlocks];      // e^y of each block over C
};

struct SweepFrame {
  float max_student, max_teacher;
  float inverse_temperature;
  float centre;
  float beta;
  float step;      // fan: sums at beta + i step, i = 0..4
  float shift;     // direct: kappa log2 e. log_probs: log_norm. residual: log2 of the student's sum of e^x
  float log_gain;  // residual: log mu / pi_S where D = 0, negated
};

struct BlockSums {  // of one block
  // direct: w D^k; fan: the same at five betas; stable: p, p v, p h, p g, w v^2, w v^3; residual: max(mu - pi_S, 0)
  double s[20];
};

struct SweepTable {
  const char* isa;
  void (*scan)(const Segment&, float inverse_temperature, SegmentScan*);
  void (*ends)(const Segment&, const SweepFrame&, bool gentle, EndsSums*);
  void (*direct)(const Segment&, const SweepFrame&, BlockSums*);
  void (*fan)(const Segment&, const SweepFrame&, BlockSums*);
  void (*stable)(const Segment&, const SweepFrame&, BlockSums*);
  void (*residual)(const Segment&, const SweepFrame&, BlockSums*);
  // out[i] = (1 - beta) x + beta y - log_norm for the `count` tokens of the segment, -inf off the support of mu_beta
  void (*log_probs)(const Segment&, const SweepFrame&, int64_t count, float* out);
  // values[i] = log(values[i]), NaN below 0
  void (*log)(float* values, int64_t count);
};

extern const SweepTable kGenericSweeps;
#ifdef TRB_X86
extern const SweepTable kAvx2Sweeps;
extern const SweepTable kAvx512Sweeps;
#endif

}  // namespace trb::cpu
