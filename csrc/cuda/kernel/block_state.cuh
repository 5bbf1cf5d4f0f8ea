// Declares the state of a block in shared memory, beside its slice of the row.
#pragma once

#include "../../solver/sweep_plan.h"
#include "../kernel_args.h"
#include "../launch/launch_table.h"
#include "cluster.cuh"
#include "search_state.cuh"

namespace trb::cuda {

// The message that one block sends to the others after a sweep, word by word. Only the first sweep sends all of it.
struct Record {
  double sums[EndsSweep::kSums];
  float shift_student, shift_teacher;  // frame of the first sweep's sums; -inf if the slice has no weight
  float max_student, max_teacher;      // NaN if some logit is NaN
  float high, low;                     // of b - a
};
static_assert(sizeof(Record) == 8 * (EndsSweep::kSums + 3), "sweep_ends sends it as so many words");

// The row's answer, in the frame x = a / T - reference_student, y = b / T - reference_teacher, in nats.
struct Answer {
  Status status;
  float beta;
  double kl;
  int32_t sweeps;
  double inverse_temperature;
  double reference_student, reference_teacher;
  double log_norm;                  // of mu: log mu = (1 - beta) x + beta y - log_norm
  double log_student, log_teacher;  // log sum of e^x over S, and of e^y over {b > -inf}
  float max_student, max_teacher;
};

// What the blocks of a row do next. kDouble: the range of float32 exponents is too small, see double_row.cuh.
enum class Action : int32_t { kSweep, kDone, kDouble };

// Where the token of a row comes from.
enum class TokenFrom : int32_t {
  kFault,     // there is none: NaN outputs
  kNowhere,   // the operator draws none
  kMu,        // drawn from mu
  kDraft,     // the draft, which was accepted
  kResidual,  // drawn from max(mu - pi_S, 0), because the draft was rejected
};

__device__ __forceinline__ bool is_drawn(TokenFrom from) {
  return from == TokenFrom::kMu || from == TokenFrom::kResidual;
}

struct Token {
  int64_t token;  // -1: none was drafted, or no token has mass
  float student_logit, teacher_logit;
};

// The arguments of verify for one row.
struct RowTask {
  int64_t student_row, teacher_row;  // of the logits
  float temperature;
  int32_t judged;  // 0 if the row is at fault before its logits are read, or belongs to no request
};

// Where the search for a row's request may begin, from what an earlier row has found: no request before `first` has
// rows from `reached` on.
struct RequestScan {
  int64_t first = 0, reached = 0;
};

struct DoubleSums {
  Tilt tilt;
  double min_d, max_d;
};

constexpr int kParts = 32;  // of the chunks from which a token is drawn, one per lane of the warp that chooses

template <int kWarps>
struct BlockState {
  // 1. The sums of this block.
  float ends[kWarps][EndsSweep::kSums];     // of the first sweep, per warp
  float exact[kWarps][StableSweep::kSums];  // of the last exact sweep, per warp
  int32_t extremes[kWarps][5];              // ordered bits of Extremes
  RangeOfD range[kWarps];
  float shift_of_block[2];  // student, teacher: frame of the first sweep's sums
  // 2. What the blocks of the row have sent, and the mbarrier of each slot.
  Record record[2][kLargestCluster];
  double residual_of_rank[kLargestCluster];
  uint64_t arrived[3];  // of both records and of the residuals
  // 3. The sums of the whole row, with the same bits in every block.
  double mass_of_rank[2][kLargestCluster];  // of the student and of the teacher over the common support
  double log_of[4];                         // of the first sweep's sums: zero, one, student, teacher
  RowFrame row;
  // 4. The arguments of the row.
  RowTask task;              // only for verify
  RequestScan request_scan;  // only for verify; of the block's rows before
  Temperature temperature;
  double epsilon, uniform;
  double accept_uniform;
  Token draft;
  // 5. The search for beta, which warp 0 runs.
  Search search;
  alignas(16) ExactFrame frame;
  float kappa;  // of the last exact sweep, in units of log 2
  Form form;
  Action action;
  float swept;  // the beta of the last exact sweep; beside its neighbors, with which it may be loaded
  Answer answer;
  float shift;  // from there to the answer
  // 6. The draw of a token.
  TokenFrom token_from;
  alignas(16)
      ExactFrame residual_frame;  // aligned, because it would otherwise be loaded together with the members after it
  float residual[kWarps][ResidualSweep::kSums];  // per warp
  double mass[kParts];
  double fraction;
  int32_t chosen_rank, chosen_warp;
  Token drawn;
  // 7. The solve in double precision.
  Solver<double> double_solver;
  Ends double_ends;
  Start start;
  DoubleSums double_sums[kWarps];
};

}  // namespace trb::cuda
