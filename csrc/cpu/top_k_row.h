// Solves one row against a teacher of which k tokens are known, and draws a token or writes log mu from that answer.
//
// One sweep over the student's row sums the weights of the tokens that the teacher does not list, per block. These are
// the rest, one more outcome beside the k tokens. The k + 1 outcomes are then solved in double precision. log mu / pi_S
// is the same for all of the rest, so that the masses of mu and of max(mu - pi_S, 0) per block need no other sweep, and
// a draw reads one block again.
#pragma once

#include <utility>
#include <vector>

#include "../operators/top_k_teacher.h"
#include "double_row.h"
#include "outcomes.h"
#include "row_answer.h"
#include "sweep/float_sweep.h"

namespace trb::cpu {

// The student's logits after one prefix, and the row of the teacher for it.
struct TopKPair {
  LogitsRow student;
  const TopKTeacher* teacher;
  int64_t teacher_row;
  int64_t vocab;
  double inverse_temperature;
};

class TopKRow {
 public:
  // `spread` as RowSolver's.
  TopKRow(int64_t vocab, bool spread, const SweepTable& sweeps);

  // The functions of RowSolver. All but `solve` are about the row that was solved last.
  const RowAnswer& solve(const TopKPair& row, double epsilon);
  Draw sample(double uniform) const;
  Draw sample_residual(double uniform) const;
  TokenLogProbs log_probs_at(int64_t token) const;
  void write_log_probs(float* out) const;

 private:
  struct Listed {
    int64_t token;
    double log_prob;
  };
  bool read_teacher();
  bool sweep_rest();
  void set_outcomes();
  template <typename Body>
  void with_block(int64_t block, bool without_listed, const Body& body) const;
  // The places in `listed_` of the tokens from `begin` on, below `end`.
  std::pair<int64_t, int64_t> listed_in(int64_t begin, int64_t end) const;
  // The logarithm of a token's share of the rest, by its logit: the same under mu and both models.
  double log_share_of_rest(double logit) const;
  // The mass of mu, or of max(mu - pi_S, 0) if `residual`, of a listed token and of the blocks.
  double listed_mass(int64_t i, bool residual) const;
  std::vector<double> block_masses(bool residual) const;
  Draw draw(bool residual, double uniform) const;

  int64_t vocab_, blocks_;
  bool spread_;
  const SweepTable& sweeps_;
  TopKPair row_{};
  std::vector<Listed> listed_;         // in token order
  double mass_ = 0.0;                  // sum of the teacher's listed probabilities
  std::vector<BlockWeights> weights_;  // of the rest, per block
  double max_student_ = 0.0;           // the largest logit of the row
  // Of the outcomes, the rest last: (a - max_student_) / T, log pi_T and log mu.
  std::vector<double> student_, teacher_, log_mu_;
  double rest_peak_ = 0.0, log_rest_ = 0.0;  // of the rest: its largest logit, and log sum of e^((a - rest_peak_) / T)
  double rest_ratio_ = 0.0;                  // log mu / pi_S of every token of the rest; -inf if mu has no mass there
  RowAnswer answer_;
};

}  // namespace trb::cpu
