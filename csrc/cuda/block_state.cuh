// What a block keeps in shared memory beside its slice of the row.
#pragma once

#include "../blend/sweep_plan.h"
#include "cluster.cuh"
#include "kernel_args.h"
#include "launch_table.h"
#include "pair_sums.cuh"

namespace trb::cuda {

// What one block tells the others after a sweep.
struct Record {
  double sums[EndsSweep::kSums];
  float shift_student, shift_teacher;  // the frame of the sums of the ends; -inf where the slice has no weight in it
  float max_student, max_teacher;      // NaN: some logit is
  float high, low;                     // of b - a
};

// The row's answer, in a frame x = a / T - reference_student, y = b / T - reference_teacher, nats.
struct Answer {
  Status status;
  float beta;
  double kl;
  int32_t sweeps;
  double inverse_temperature;
  double reference_student, reference_teacher;
  double log_norm;                  // of mu: log mu = (1 - beta) x + beta y - log_norm
  double log_student, log_teacher;  // log sum of e^x over the student's support, of e^y over the teacher's
  float max_student, max_teacher;
};

enum class Action : int32_t { kSweep, kDone, kWide };  // kWide: float32 exponents do not reach, see wide_row.cuh

// Where the token of a row comes from.
enum class TokenFrom : int32_t {
  kFault,     // none: NaN outputs
  kNowhere,   // none is wanted
  kMu,        // drawn
  kDraft,     // it stands
  kResidual,  // drawn from max(mu - pi_S, 0), the draft having been rejected
};

__device__ __forceinline__ bool is_drawn(TokenFrom from) {
  return from == TokenFrom::kMu || from == TokenFrom::kResidual;
}

struct Token {
  int64_t token;  // -1: none, or no token has mass
  float student_logit, teacher_logit;
};

// What of verify's arguments concerns one row.
struct RowTask {
  int64_t student_row, teacher_row;  // of the logits
  float temperature;
  int32_t judged;  // 0: at fault before its logits are read, or a row of no request
};

struct WideSums {
  Tilt tilt;
  double min_d, max_d;
};

constexpr int kParts = 32;  // of what a token is drawn from, one for each lane that chooses

template <int kWarps>
struct BlockState {
  // Of this block.
  float ends[kWarps][EndsSweep::kSums];     // of each warp, first sweep
  float exact[kWarps][StableSweep::kSums];  // of each warp, last exact sweep
  int32_t extremes[kWarps][5];              // ordered bits of Extremes
  RangeOfD range[kWarps];
  float shift_of_block[2];  // student, teacher: the frame of the sums of the ends
  // What the blocks of the row have sent. Two sets in turn: a block may send its next record while a slow peer still
  // reads the last one, but not the one after, which a barrier separates.
  Record record[2][kLargestCluster];
  // Of the whole row, the same bits in every block.
  double ends_of_rank[kLargestCluster][EndsSweep::kSums];  // in the row's frame
  double total[EndsSweep::kSums];
  double log_of[4];         // zero, one, student, teacher: of the sums of the ends
  float extreme_of_row[4];  // max student, max teacher, high, low
  float shift_of_row[2];    // student, teacher
  // Of the arguments.
  RowTask task;  // of verify
  Temperature temperature;
  double epsilon, uniform;
  double accept_uniform;
  Token draft;
  // The search, by one thread.
  Solver<float> solver;
  double zero_mean;  // of D under mu_0, in the row's frame
  double centre;     // of the last exact sweep's D, in the row's frame
  double kappa;      // of the last direct sweep
  ExactFrame frame;
  Form form;
  Action action;
  Answer answer;
  // The draw.
  TokenFrom token_from;
  alignas(16) ExactFrame residual_frame;         // else it is loaded with what comes after it
  float residual[kWarps][ResidualSweep::kSums];  // of each warp
  double mass[kParts];
  double fraction;
  int32_t chosen_rank, chosen_warp;
  Token drawn;
  // A row in double precision.
  Solver<double> wide_solver;
  Ends wide_ends;
  Start start;
  WideSums wide[kWarps];
};

}  // namespace trb::cuda
