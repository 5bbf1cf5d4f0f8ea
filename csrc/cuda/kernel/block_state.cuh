// Declares the state of a block in shared memory, beside its slice of the row.
#pragma once

#include <cstddef>

#include "../../solver/sweep_plan.h"
#include "../kernel_args.h"
#include "../launch/launch_table.h"
#include "cluster.cuh"
#include "search_state.cuh"

namespace trb::cuda {

constexpr int32_t kNoShift = -(1 << 30);  // of a slice without weight

constexpr int kStripsPerBlock = kSectionsPerBlock * kStripsPerSection;

// The extremes of a section, and the frame of its first sweep. Floats are `ordered` (warp.cuh).
struct SliceFrame {
  int32_t shift_student, shift_teacher;  // whole numbers, bounded by half of kNoShift
  int32_t max_student, max_teacher;      // of NaN if some logit is NaN
  int32_t high, low;                     // of b - a
};

// The frame of no logits.
__device__ __forceinline__ SliceFrame empty_frame() {
  return {kNoShift, kNoShift, ordered(-INFINITY), ordered(-INFINITY), ordered(-INFINITY), ordered(INFINITY)};
}

// What a block sends to the others after a sweep, word by word, for each of its sections. Only the first sweep sends
// all of it.
struct alignas(8 * kWarp / kSectionsPerBlock) Record {
  double sums[EndsSweep::kSums];
  SliceFrame frame;
};
constexpr int kRecordWords = EndsSweep::kSums + 3;
static_assert(offsetof(Record, frame) + sizeof(SliceFrame) == 8 * kRecordWords && sizeof(Record) == 8 * kWarp / 2,
              "each lane of a warp has a word of two records");

// The record of a section that does not exist, which adds nothing.
__device__ __forceinline__ void clear(Record& record) {
  record = Record{};
  record.frame = empty_frame();
}

// The words of the record of an exact sweep.
__device__ __forceinline__ int words_of(Form form) {
  return form == Form::kStable ? StableSweep::kSums : DirectSweep::kSums;
}

// The row's answer, in the frame x = a / T - reference_student, y = b / T - reference_teacher, in nats. In double
// precision max_student, max_teacher and the references are the origin of csrc/cpu/double_row.h, and no maxima.
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

// What the blocks of a row do after a decision.
enum class Action : int32_t {
  kSweep,    // once more
  kDone,     // nothing: all outputs are written
  kOutputs,  // write what needs the row's logits
  kDouble,   // the range of float32 exponents is too small, see double_row.cuh
};

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

// The request at which the search for the next row's request may begin. No request before `first` has rows from
// `reached` on.
struct RequestScan {
  int64_t first = 0, reached = 0;
};

struct DoubleSums {
  Tilt tilt;
  double min_d, max_d;
};

// What a decision leaves for all threads, and for the decision after it.
struct alignas(16) Plan {
  ExactFrame frame;  // of the next sweep or, after the last one, of the weights from which a token is drawn
  Form form;
  Action action;
  float kappa;  // of the direct form, in units of log 2
  float swept;  // the beta of that sweep
  Search search;
};

constexpr int kParts = 32;  // of the chunks from which a token is drawn, one per lane of the warp that chooses

// Consecutive chunks of a row.
struct Chunks {
  int32_t begin, end;

  // Part `index` of `parts` parts of equal size.
  __device__ __forceinline__ Chunks part(int index, int parts) const {
    const int32_t each = (end - begin) / parts,
                  longer = (end - begin) % parts;  // the first `longer` parts have one chunk more
    const int32_t first = begin + index * each + min(index, longer);
    return {first, first + each + (index < longer)};
  }
};

template <int kWarps>
struct BlockState {
  int32_t strip[kStripsPerBlock + 1];  // the first chunk of each strip, and where the last one ends
  // 1. The sums of this block.
  float ends[kStripsPerBlock][EndsSweep::kSums];     // of the first sweep, per strip
  float exact[kStripsPerBlock][StableSweep::kSums];  // of the last exact sweep, per strip
  // The extremes of each section, by atomic maxima of its warps, in turns for one row and for the next.
  alignas(16) SliceFrame section[2][kSectionsPerBlock];
  // 2. What the blocks of the row have sent, and the mbarrier of each slot. Records of sections that do not exist add
  // nothing.
  alignas(128) Record record[2][kMostSections];
  double residual_of_section[kMostSections];
  uint64_t arrived[3];  // of both records and of the residuals
  // 3. The sums of the whole row, with the same bits in every block.
  // Of each section, from the first sweep: the mass at beta = 0 and 1, of the student and of the teacher.
  double mass[4][kMostSections];
  double log_of[4];  // of their totals
  RowFrame row;
  // 4. The arguments of the row.
  RowTask task;              // only for verify
  RequestScan request_scan;  // only for verify; of the block's rows before
  Temperature temperature;
  double epsilon, uniform;
  double accept_uniform;
  Token draft;
  // 5. The search for beta, which warp 0 runs. A decision on the records of one slot reads the plan of that slot and
  // writes the other one.
  Plan plan[2];
  Answer answer;
  float shift;  // from the beta that was swept last to the answer
  // 6. The draw of a token.
  TokenFrom token_from;
  alignas(16)
      ExactFrame residual_frame;  // aligned, because it would otherwise be loaded together with the members after it
  float residual[kStripsPerBlock][ResidualSweep::kSums];  // per strip
  double part_mass[kParts];
  double fraction;
  int32_t chosen_section, chosen_strip;  // of the row, and of the section
  Token drawn;
  // 7. The solve in double precision.
  Solver double_solver;
  bool double_sweeps;  // whether another sweep follows, and after the last one whether another solve does
  Ends double_ends;
  double log_sums[2];  // log sum of e^x, and of e^y, from the maxima of the row and not from the answer's origin
  Start start;
  DoubleSums double_sums[kWarps];

  // The chunks of `count` strips of the block.
  __device__ __forceinline__ Chunks chunks_of(int first, int count) const {
    return {strip[first], strip[first + count]};
  }

  // The place of the word that a lane of warp 0 sends: half of the lanes have a record of each section.
  __device__ __forceinline__ void* word_of_record(int slot, int first_section, int lane) {
    return reinterpret_cast<uint64_t*>(&record[slot][first_section]) + lane;
  }
};

}  // namespace trb::cuda
