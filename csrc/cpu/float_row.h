// A row by the float32 sweeps of the machine's instruction set: two sweeps on ordinary rows, six at most.
#pragma once

#include <vector>

#include "../blend/sweep_plan.h"
#include "float_sweep.h"
#include "row_answer.h"

namespace trb::cpu {

class FloatRow {
 public:
  FloatRow(int64_t vocab, bool spread, const SweepTable& sweeps);

  // False where float32 exponents would not reach (logits that differ by hundreds of nats) or six sweeps do not settle
  // the row: `answer` then holds nothing but the maxima and the sweeps spent, and the row is for DoubleRow.
  bool solve(const RowPair& row, double epsilon, RowAnswer* answer);

  // mass[block] = the block's sum of max(mu - pi_S, 0), for the same.
  void residual(const RowPair& row, const RowAnswer& answer, std::vector<double>* mass);

  // out[i] = log mu(i), element stride 1, for the row and the answer of the last `solve` that returned true.
  void write_log_probs(const RowPair& row, const RowAnswer& answer, float* out) const;

 private:
  template <typename Body>
  void for_each_segment(const RowPair& row, const Body& body) const;
  struct Search {
    Solver<> solver;
    SweepFrame frame{};  // of the last sweep
    Form form = Form::kDirect;
    int sweeps = 0;
  };
  bool search(const RowPair& row, double epsilon, bool interpolate, Search* found);
  // `interpolate`: the nodes between of gentle segments from the others instead of a sweep of all five.
  bool first_sweep(const RowPair& row, double epsilon, bool interpolate, Start* start);
  bool any_gentle() const;
  Node node_at(int quarters, const double* sums) const;
  bool add_gentle(const double (*gentle)[4], double budget, double (*sum)[4], double* fourth) const;
  SweepFrame frame_of(const SweepPlan& plan) const;
  int exact_sweep(const RowPair& row, const SweepFrame& frame, Form form, Node* nodes);

  int64_t vocab_, blocks_, segments_;
  bool spread_;
  const SweepTable& sweeps_;
  std::vector<SegmentScan> scans_;
  std::vector<EndsSums> ends_;
  std::vector<BlockSums> sums_;  // of each block, last exact sweep

  // Frame of the row: logits relative to the maxima, D relative to `centre_`.
  float max_student_ = 0.0f, max_teacher_ = 0.0f, inverse_temperature_ = 1.0f;
  double centre_ = 0.0, zero_mean_ = 0.0;  // zero_mean_: of D under mu_0, centred
  double offset_ = 0.0;                    // (1 - beta) x + beta y = x + beta (D - offset), D centred
  double zero_mass_ = 0.0, one_mass_ = 0.0, student_mass_ = 0.0, teacher_mass_ = 0.0;
};

}  // namespace trb::cpu
