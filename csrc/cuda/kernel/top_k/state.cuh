// Declares the state of a block that solves rows whose teacher is k tokens, and reads their k + 1 outcomes.
#pragma once

#include "../../top_k_args.h"
#include "../outputs.cuh"

namespace trb::cuda {

constexpr int kTopKWarps = kTopKThreads / kWarp;
constexpr int kTileTokens = kTopKWarps * static_cast<int>(kBlock);  // a token block per warp
static_assert(kTileTokens / 32 == kTopKThreads, "each thread clears one word of the listed tokens of a tile");

// The tokens of a block that the teacher does not list: their largest logit, and the sum of e^{(a - peak) / T}.
struct BlockWeight {
  float peak, mass;
};

// The logarithms of both models' probabilities of an outcome: the student's x = (a - max a) / T, the teacher's log
// pi_T.
struct Outcome {
  double student, teacher;
};

struct TopKState {
  // 1. The row's arguments.
  RowTask task;
  Temperature temperature;
  double epsilon, uniform, accept_uniform;
  int64_t draft;
  // 2. The sweep of the row.
  uint32_t listed[kTileTokens / 32];  // a bit per token of the tile that is swept
  uint32_t fault;                     // of the k tokens
  float warp_max[kTopKWarps];         // of all logits; NaN if one is
  float max_student, rest_peak;
  Outcome rest;
  double log_rest;   // the logarithm of the student's rest, from rest_peak
  double log_total;  // of the teacher's mass, k tokens and rest
  // 3. The search for beta, which one thread runs.
  Tilt tilt;  // of the last sweep over the outcomes
  double min_d, max_d;
  Ends ends;
  Start start;
  Solver solver;
  bool searching;
  // 4. The answer.
  Status status;
  float beta;
  Outcome origin;  // of x and y, from which log_norm is taken (csrc/cpu/double_row.h)
  double kl, log_norm, log_student;
  double log_mu_of_rest;
  double rest_ratio;  // log mu / pi_S of every token that is not listed; -inf if mu has no mass there
  // 5. The draw of a token.
  double weight[kBlock];  // of the tokens of one block
};

// One row of the student's logits.
struct StudentRow {
  LogitsRow row;
  int32_t vocab;
  bool aligned;  // contiguous, and begins at a multiple of 16 bytes
  StudentKind kind;
  float temperature;  // for a student that is given in another form than raw logits

  __device__ __forceinline__ StudentRow(const KernelArgs& args, const RowTask& task)
      : row(args.student, task.student_row),
        vocab(args.vocab),
        aligned(row.stride == 1 && row.bytes_past_alignment() == 0),
        kind(args.verify.student_kind),
        temperature(task.temperature) {}

  __device__ __forceinline__ float logit(int64_t token) const {
    const float value = row.logit(token);
    return kind == StudentKind::kLogits ? value : raw_logit(value, kind, temperature);
  }

  // Reads eight tokens from `first` on, a multiple of eight; -inf beyond the end of the row.
  __device__ __forceinline__ void load(int32_t first, float (&out)[8]) const {
    if (!aligned || first + 8 > vocab) {
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] = first + i < vocab ? logit(first + i) : -INFINITY;
      return;
    }
    if (row.dtype == DType::kFloat32) {
      const uint4* source = reinterpret_cast<const uint4*>(row.data) + first / 4;
      float low[4], high[4];
      LogitVector<float>::unpack(source[0], low);
      LogitVector<float>::unpack(source[1], high);
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = low[i], out[i + 4] = high[i];
    } else {
      const uint4 bits = reinterpret_cast<const uint4*>(row.data)[first / 8];
      if (row.dtype == DType::kFloat16) {
        LogitVector<__half>::unpack(bits, out);
      } else {
        LogitVector<__nv_bfloat16>::unpack(bits, out);
      }
    }
    if (kind == StudentKind::kLogits) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = raw_logit(out[i], kind, temperature);
  }

 private:
  // Not inlined, because eight logarithms would make the kernel long.
  static __device__ __noinline__ float raw_logit(float value, StudentKind kind, float temperature) {
    const float x = kind == StudentKind::kProbabilities ? logf(value) : value, raw = x * temperature;
    // A finite number must not overflow, because -inf would be a mask and +inf a fault.
    return fabsf(x) < INFINITY && fabsf(raw) == INFINITY ? copysignf(FLT_MAX, raw) : raw;
  }
};

// Everything that the functions over the outcomes of one row take.
struct TopKRow {
  const TopKArgs& args;
  const StudentRow& student;
  TopKState& state;
  BlockWeight* weights;  // per token block
  double* masses;        // of mu, or of max(mu - pi_S, 0), per token block
  int lane;

  __device__ __forceinline__ int64_t id(int64_t place) const { return args.teacher.id(state.task.teacher_row, place); }
  // The outcome of the token in a place of the list; that of the rest if `place` is k.
  __device__ __forceinline__ Outcome outcome(int64_t place) const {
    if (place == args.teacher.k) return state.rest;
    const int64_t token = id(place);
    if (token < 0) return {-INFINITY, -INFINITY};
    return {in_frame(token), args.teacher.log_prob(state.task.teacher_row, place) - state.log_total};
  }
  __device__ __forceinline__ double in_frame(int64_t token) const {
    // Not fused with what is subtracted from it: from an origin of 1e30, which was rounded, the result must be 0.
    return __dmul_rn(static_cast<double>(student.logit(token)) - state.max_student, state.temperature.inverse);
  }
  // The logarithm of a token's share of the rest, by its logit: the same under mu and both models.
  __device__ __forceinline__ double log_share_of_rest(float logit) const {
    if (!(logit > -INFINITY)) return -INFINITY;
    return (static_cast<double>(logit) - state.rest_peak) * state.temperature.inverse - state.log_rest;
  }
  __device__ __forceinline__ double log_mu(const Outcome& of) const {
    const double beta = state.beta;
    if (!(of.student > -INFINITY) || (beta > 0.0 && !(of.teacher > -INFINITY))) return -INFINITY;
    const double x = of.student - state.origin.student, y = of.teacher - state.origin.teacher;
    return (beta == 0.0 ? x : tilted_logit(x, y, beta)) - state.log_norm;
  }
};

}  // namespace trb::cuda
