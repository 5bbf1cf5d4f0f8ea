// What a block keeps in shared memory beside its slice of the row.
#pragma once

#include "../blend/sweep_plan.h"
#include "cluster.cuh"
#include "pair_sums.cuh"

namespace trb::cuda {

// What one block tells its peers after a sweep. There are two, used in turn: a block may write its next record while a
// slow peer still reads the last one, but not the one after, which a barrier separates.
struct Record {
  double sums[EndsSweep::kSums];
  float shift_student, shift_teacher;  // the frame of the sums of the ends; -inf where the slice has no finite logit
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

struct Drawn {
  int64_t token;
  float student_logit, teacher_logit;
};

struct WideSums {
  Tilt tilt;
  double min_d, max_d;
};

template <int kWarps>
struct BlockState {
  // Of this block.
  float ends[kWarps][EndsSweep::kSums];     // of each warp, first sweep
  float exact[kWarps][StableSweep::kSums];  // of each warp, last exact sweep
  int32_t extremes[kWarps][5];              // ordered bits of Extremes
  RangeOfD range[kWarps];
  Record record[2];
  // Of the whole row, the same bits in every block.
  double by_rank[kMaxRanks][EndsSweep::kSums];  // the ends, in the row's frame; then the last exact sweep
  double ends_mass[kMaxRanks][2];               // of mu_0 over the student's support and of mu_1, in the row's frame
  double total[EndsSweep::kSums];
  float extreme_of_row[4];  // max student, max teacher, high, low
  float shift_of_row[2];    // student, teacher
  // The search, by one thread.
  Solver<float> solver;
  double zero_mass, zero_mean, one_mass;  // of mu_0 and mu_1 over the common support, in the row's frame
  double centre;                          // of the last exact sweep's D, in the row's frame
  double kappa;                           // of the last direct sweep
  ExactFrame frame;
  Form form;
  Action action;
  Answer answer;
  // The draw.
  double mass[kMaxRanks > kWarps ? kMaxRanks : kWarps];
  double target;
  int32_t chosen_rank, chosen_warp;
  Drawn drawn;
  // A row in double precision.
  Solver<double> wide_solver;
  Ends wide_ends;
  Start start;
  WideSums wide[kWarps];
};

}  // namespace trb::cuda
