// beta* = max { beta in [0, 1] : KL(mu_beta || pi_S) <= epsilon }, as a state machine that asks for sweeps of a row and
// never touches the row itself, so that CPU threads, CTAs and unit tests fed with synthetic sums run the same code.
//
//   Solver solver(epsilon);
//   solver.begin(ends);                                    // sums of the first sweep
//   while (solver.wants_sweep()) solver.update(sums of mu at solver.beta());
//
// Safeguarded Newton: the bracket [low, high] always satisfies f(low) <= budget < f(high); the next beta comes from the
// Hermite interpolation of log(f / beta^2) across it (hermite.h), which is Newton's quadratic model made safe on rows
// where f is nearly a step; a bracket that does not shrink fourfold in three sweeps is halved.
//
// Contract: the answer's beta is a float32 number (it is returned as one, and the law of the samples is the law at that
// very number), it was evaluated by a sweep, and it is feasible: f(beta) <= budget, with f(beta) >= budget (1 -
// kTolerance) unless no float32 number lies that close. Relative to epsilon the answer is therefore in [1 - kTolerance,
// 1].
#pragma once

#include <cmath>

#include "hermite.h"

namespace trb {

constexpr double kTolerance = 1e-4;
constexpr int kMaxSweeps = 64;  // safety only: bisection of float32 numbers ends before

enum class Status { kFault, kStudent, kTeacher, kInterior };

class Solver {
 public:
  TRB_HD explicit Solver(double epsilon) : epsilon_(epsilon) {}

  TRB_HD void begin(const Ends& ends) {
    sweeps_ = 1;
    searching_ = false;
    if (ends.fault || ends.student.empty() || ends.teacher.empty() || !(epsilon_ >= 0.0)) {
      status_ = Status::kFault;
      beta_ = NAN;
      return;
    }
    zero_ = ends.zero;
    phi_ = zero_.weight.empty() ? INFINITY : support_floor(ends);
    budget_ = epsilon_ - phi_;
    // epsilon = 0, no common support (phi = inf, and inf - inf is NaN), or a teacher that masks too much: the student.
    if (!(epsilon_ > 0.0) || !(budget_ > 0.0)) {
      status_ = Status::kStudent;
      return;
    }
    high_ = node_at(1.0, ends.one, zero_);
    if (high_.f <= budget_) {
      status_ = Status::kTeacher;
      beta_ = 1.0f;
      kl_ = phi_ + high_.f;
      return;
    }
    status_ = Status::kInterior;
    searching_ = true;
    low_ = {0.0, 0.0, 0.0, zero_.m2};
    width_ = 1.0;
    propose();
  }

  TRB_HD void update(const Tilt& tilt) {
    ++sweeps_;
    const Node node = node_at(beta_, tilt, zero_);
    if (last_resort_ || (node.f <= budget_ && node.f >= budget_ * (1.0 - kTolerance))) {
      finish(node);
      return;
    }
    (node.f <= budget_ ? low_ : high_) = node;
    propose();
  }

  TRB_HD bool wants_sweep() const { return searching_; }
  TRB_HD Status status() const { return status_; }
  TRB_HD float beta() const { return beta_; }
  TRB_HD double kl() const { return status_ == Status::kFault ? NAN : kl_; }
  TRB_HD int sweeps() const { return sweeps_; }

 private:
  TRB_HD void finish(const Node& node) {
    searching_ = false;
    kl_ = phi_ + node.f;
  }

  TRB_HD void propose() {
    const float low = static_cast<float>(low_.beta), high = static_cast<float>(high_.beta);
    if (nextafterf(low, 1.0f) >= high || sweeps_ >= kMaxSweeps) {
      if (low == 0.0f) {  // nothing but the student is feasible at float32 resolution
        status_ = Status::kStudent;
        searching_ = false;
        beta_ = 0.0f;
        return;
      }
      last_resort_ = true;  // sweep the largest feasible beta once more: its sums are what sampling needs
      beta_ = low;
      return;
    }
    const LogNode left = low_.beta > 0.0 ? log_node(low_) : log_node_at_zero(zero_);
    double next = hermite_root(left, log_node(high_), budget_ * (1.0 - 0.5 * kTolerance));
    if (++round_ % 3 == 0) {
      if (high_.beta - low_.beta > 0.25 * width_) next = NAN;
      width_ = high_.beta - low_.beta;
    }
    float candidate = std::isnan(next) ? halfway() : static_cast<float>(next);
    if (!(candidate > low && candidate < high)) candidate = halfway();
    if (!(candidate > low)) candidate = nextafterf(low, 1.0f);
    beta_ = candidate;
  }

  // Halves the bracket: its exponent while that is the wider part, then its value.
  TRB_HD float halfway() const {
    const double low = low_.beta, high = high_.beta;
    if (low == 0.0) return static_cast<float>(high > 1e-30 ? high * 0.0625 : high * 0.5);
    return static_cast<float>(high > 4.0 * low ? ::sqrt(low) * ::sqrt(high) : 0.5 * (low + high));
  }

  double epsilon_;
  double phi_ = 0.0;
  double budget_ = 0.0;  // epsilon - phi, for f
  Tilt zero_;
  Node low_{}, high_{};
  double width_ = 1.0;
  double kl_ = 0.0;
  float beta_ = 0.0f;
  int sweeps_ = 0;
  int round_ = 0;
  bool searching_ = false;
  bool last_resort_ = false;
  Status status_ = Status::kFault;
};

}  // namespace trb
