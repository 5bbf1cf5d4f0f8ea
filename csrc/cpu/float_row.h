// Solves a row with the float32 sweeps of the machine's instruction set. Ordinary rows need two sweeps, and no row more
// than six.
#pragma once

#include <vector>

#include "../solver/sweep_plan.h"
#include "row_answer.h"
#include "sweep/float_sweep.h"

namespace trb::cpu {

class FloatRow {
 public:
  FloatRow(int64_t vocab, bool spread, const SweepTable& sweeps);

  // Returns false if the range of float32 exponents is too small (logits that differ by hundreds of nats) or six sweeps
  // do not find the answer. `answer` then holds only the maxima and the number of sweeps, and DoubleRow must solve the
  // row.
  bool solve(const RowPair& row, double epsilon, RowAnswer* answer);

  // Writes mass[block] = the block's sum of max(mu - pi_S, 0), for the row and answer of the last successful `solve`.
  void residual(const RowPair& row, const RowAnswer& answer, std::vector<double>* mass);

  // Writes out[i] = log mu(i), contiguous, for the row and answer of the last successful `solve`.
  void write_log_probs(const RowPair& row, const RowAnswer& answer, float* out) const;

 private:
  template <typename Body>
  void for_each_segment(const RowPair& row, const Body& body) const;
  struct Search {
    Solver solver;
    SweepFrame frame{};  // of the last sweep
    Form form = Form::kDirect;
    int sweeps = 0;
  };
  bool search(const RowPair& row, double epsilon, bool interpolate, Search* found);
  // If `interpolate`, gentle segments are swept at three betas and interpolated between them, instead of swept at five.
  bool first_sweep(const RowPair& row, double epsilon, bool interpolate, Start* start);
  bool any_gentle() const;
  Node node_at(int quarters, const double* sums) const;
  bool add_gentle(const double (*gentle)[4], double headroom, double (*sum)[4], double* fourth) const;
  SweepFrame frame_of(const SweepPlan& plan) const;
  int exact_sweep(const RowPair& row, const SweepFrame& frame, Form form, Node* nodes);

  int64_t vocab_, blocks_, segments_;
  bool spread_;
  const SweepTable& sweeps_;
  std::vector<SegmentScan> scans_;
  std::vector<EndsSums> ends_;
  std::vector<BlockSums> sums_;  // of the last exact sweep, per block

  // The frame of the row: logits are relative to the maxima, D is relative to `center_`.
  float max_student_ = 0.0f, max_teacher_ = 0.0f, inverse_temperature_ = 1.0f;
  double center_ = 0.0, zero_mean_ = 0.0;  // zero_mean_: of the centered D under mu_0
  double offset_ = 0.0;                    // (1 - beta) x + beta y = x + beta (D - offset) with the centered D
  double zero_mass_ = 0.0, one_mass_ = 0.0, student_mass_ = 0.0, teacher_mass_ = 0.0;
};

}  // namespace trb::cpu
