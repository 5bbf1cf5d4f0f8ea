// beta* = max { beta in [0, 1] : KL(mu_beta || pi_S) <= epsilon }, as a state machine that asks for sweeps of a row and
// never touches the row itself, so that CPU threads, CTAs and unit tests fed with synthetic sums run the same code.
//
//   Solver solver(epsilon, max_sweeps);
//   solver.begin(start);                                              // from the sums of the first sweep
//   while (solver.next()) solver.update(nodes at solver.swept_beta() + i solver.step(), how many, exact);
//   solver.beta(), solver.kl(); mu is the tilt by shift() of the distribution at node swept_node() of the last sweep
//
// Safeguarded Newton: the bracket [low, high] holds the root; the next beta comes from the Hermite interpolation of
// log(f / beta^2) across it (hermite.h), which is Newton's quadratic model made safe on rows where f is nearly a step.
// A bracket that does not shrink fourfold in three sweeps is halved. Where the quintic and the cubic interpolation
// disagree by more than the last step below can bridge, a fan is asked for, a sweep at five betas (if the device has
// one).
//
// The last step needs no sweep. |A''''| <= R^2 A'' and |A'''| <= R A'' for a variable of range R, so
//   f(beta + h) = f + f' h + f'' h^2 / 2 + A''' h^3 / 3 + err,
//   |err| <= E(h) = (beta + |h|) A'' R^2 |h|^3 e^{R |h|} / 6,
// and beta + h is accepted where the cubic meets (1 - tolerance / 2) budget and E(h) <= tolerance / 2 budget: then
// KL <= budget is certain, and the answer hardly depends on where the sweep happened to be.
//
// Contract: beta is a float32 number (it is returned as one, and samples follow the law at that very number), feasible,
// and f(beta) >= (1 - tolerance) budget unless no float32 number lies that close or max_sweeps is reached. Only nodes
// swept exactly decide; the inexact ones of a first float32 sweep steer.
#pragma once

#include <cmath>

#include "hermite.h"

namespace trb {

constexpr double kTolerance = 2e-4;
constexpr double kLargestShift = 0.05;  // of |h| R: the four-term shift of a block's mass is then right to 3e-7

enum class Status { kFault, kStudent, kTeacher, kInterior };

// What the first sweep tells.
struct Start {
  bool fault = false;        // NaN or +inf seen, or a model without a finite logit
  double phi = 0.0;          // -log pi_S(C); inf where C is empty
  double range = INFINITY;   // R = max_C D - min_C D
  double uncertainty = 0.0;  // of f at the nodes, absolute; 0 where they are exact
  int nodes = 0;             // node[0] at beta = 0, the last at 1
  Node node[5];
};

// From a first sweep in double precision.
TRB_HD inline Start start_of(const Ends& ends) {
  Start start;
  start.fault = ends.fault || ends.student.empty() || ends.teacher.empty();
  if (start.fault) return start;
  const bool disjoint = ends.zero.weight.empty();
  // Exactly 0 when the teacher masks nothing, because both sums are then the same additions.
  const double phi = disjoint ? INFINITY : ends.student.log() - ends.zero.weight.log();
  start.phi = phi > 0.0 ? phi : 0.0;
  if (disjoint) return start;
  start.range = ends.max_d - ends.min_d;
  start.nodes = 2;
  start.node[0] = node_of(0.0, ends.zero, ends.zero);
  start.node[1] = node_of(1.0, ends.one, ends.zero);
  return start;
}

template <typename Real = double>  // of the interpolation, see hermite.h
class Solver {
 public:
  TRB_HD Solver(double epsilon, int max_sweeps, bool fans) : epsilon_(epsilon), max_sweeps_(max_sweeps), fans_(fans) {}

  TRB_HD void begin(const Start& start) {
    sweeps_ = 1;
    status_ = Status::kFault;
    if (start.fault || !(epsilon_ >= 0.0)) return;
    beta_ = 0.0f;
    phi_ = start.phi;
    range_ = start.range;
    uncertainty_ = start.uncertainty;
    budget_ = epsilon_ - phi_;
    status_ = Status::kStudent;
    // epsilon = 0, no common support (phi = inf, and inf - inf is NaN), or a teacher that masks too much: the student.
    if (!(epsilon_ > 0.0) || !(budget_ > 0.0)) return;

    const Node& one = start.node[start.nodes - 1];
    // KL of nearly equal models is lost in the rounding of the first sweep; one exact sweep then decides.
    const double doubt = start.uncertainty, doubtful = 1e-4 * (doubt > 0.0);
    if (budget_ == INFINITY || (one.f <= budget_ - doubt && one.f >= doubtful)) {
      status_ = Status::kTeacher;
      beta_ = 1.0f;
      kl_ = phi_ + one.f;
      return;
    }
    status_ = Status::kInterior;
    low_ = start.node[0];
    high_ = one;
    for (int i = 1; i + 1 < start.nodes; ++i) {
      const Node& node = start.node[i];
      if (node.f <= budget_ - doubt) low_ = node;
      if (node.f > budget_ + doubt) {
        high_ = node;
        break;
      }
    }
    best_ = static_cast<float>(low_.beta);
    width_ = high_.beta - low_.beta;
    if (one.f <= budget_ + doubt) {
      sweep_at(1.0f);
    } else {
      request_ = Request::kOpen;
    }
  }

  // Nodes of the sweep asked for, by ascending beta. Inexact ones (float32 sums of a small KL) only narrow the bracket.
  TRB_HD void update(const Node* nodes, int count, bool exact) {
    ++sweeps_;
    request_ = Request::kNone;
    swept_ = nodes[0];
    swept_node_ = 0;
    if ((settled_ || nodes[0].beta == 1.0) && nodes[0].f <= budget_) {
      finish(nodes[0].f);
      return;
    }
    if (settled_) {  // what made it look feasible was inexact
      become_student();
      return;
    }
    for (int i = 0; exact && i < count; ++i) {
      if (shift_to_target(nodes[i])) {
        swept_ = nodes[i];
        swept_node_ = i;
        return;
      }
    }
    for (int i = count - 1; exact && i >= 0; --i) {
      if (nodes[i].f <= budget_ && nodes[i].f >= budget_ * (1.0 - kTolerance)) {
        swept_ = nodes[i];
        swept_node_ = i;
        next_ = static_cast<float>(nodes[i].beta);
        finish(nodes[i].f);
        return;
      }
    }
    const double doubt = exact ? 0.0 : uncertainty_;
    for (int i = 0; i < count; ++i) {
      const Node& node = nodes[i];
      if (node.f <= budget_ - doubt && node.beta > low_.beta) {
        low_ = node;
        if (exact) best_ = round_down(node.beta);
      }
    }
    for (int i = count - 1; i >= 0; --i) {
      if (!(nodes[i].f <= budget_ + doubt) && nodes[i].beta < high_.beta && nodes[i].beta > low_.beta) high_ = nodes[i];
    }
    request_ = Request::kOpen;
  }

  // Whether another sweep is needed, and if so where; else the answer stands.
  TRB_HD bool next() {
    if (request_ == Request::kOpen) propose();
    return request_ == Request::kSweep;
  }

  TRB_HD float swept_beta() const { return next_; }  // of the sweep it asks for, and then of the last one
  TRB_HD float step() const { return step_; }        // 0: one beta; else five
  TRB_HD int swept_node() const { return swept_node_; }
  TRB_HD double budget() const { return budget_; }  // for f: epsilon - phi
  TRB_HD const Node& low() const { return low_; }   // the bracket, for a frame without over- or underflow
  TRB_HD const Node& high() const { return high_; }

  TRB_HD Status status() const { return status_; }
  TRB_HD float beta() const { return status_ == Status::kFault ? NAN : beta_; }
  TRB_HD double kl() const { return status_ == Status::kFault ? NAN : kl_; }
  TRB_HD int sweeps() const { return sweeps_; }
  TRB_HD const Node& swept() const { return swept_; }
  TRB_HD double shift() const { return static_cast<double>(beta_) - swept_.beta; }

 private:
  enum class Request { kNone, kSweep, kOpen };  // kOpen: a sweep, but where is not yet decided

  TRB_HD void sweep_at(float beta, float step = 0.0f) {
    next_ = beta;
    step_ = step;
    request_ = Request::kSweep;
  }

  TRB_HD static float round_down(double x) {
    const float nearest = static_cast<float>(x);
    return static_cast<double>(nearest) > x ? nextafterf(nearest, 0.0f) : nearest;
  }

  TRB_HD void finish(double f) {
    beta_ = next_;
    kl_ = phi_ + f;
  }

  TRB_HD void become_student() {
    status_ = Status::kStudent;
    beta_ = 0.0f;
    kl_ = 0.0;
  }

  TRB_HD bool shift_to_target(const Node& node) {
    const double target = budget_ * (1.0 - 0.5 * kTolerance);
    double h = 0.0;
    for (int i = 0; i < 4; ++i) {
      h += (target - cubic(node, h)) * (Real(1) / static_cast<Real>(node.f1() + h * (node.f2() + h * node.k3)));
    }
    const float beta = static_cast<float>(node.beta + h);
    h = static_cast<double>(beta) - node.beta;
    const double reach = ::fabs(h) * range_;
    const double error = (node.beta + ::fabs(h)) * node.k2 * range_ * range_ * ::fabs(h * h * h) * (1.0 / 6.0) *
                         std::exp(static_cast<Real>(reach));
    const double f = cubic(node, h);
    if (!(reach <= kLargestShift && beta > 0.0f && beta <= 1.0f)) return false;
    if (!(error <= 0.5 * kTolerance * budget_ && f + error <= budget_ && f - error >= budget_ * (1.0 - kTolerance))) {
      return false;
    }
    beta_ = beta;
    kl_ = phi_ + f;
    return true;
  }

  TRB_HD static double cubic(const Node& node, double h) {
    return node.f + h * (node.f1() + h * (0.5 * node.f2() + h * node.k3 / 3.0));
  }

  TRB_HD void propose() {
    const float low = static_cast<float>(low_.beta), high = static_cast<float>(high_.beta);
    // One sweep is kept for the largest feasible beta seen: its sums are what sampling needs.
    if (nextafterf(low, 1.0f) >= high || sweeps_ + 1 >= max_sweeps_) {
      if (best_ == 0.0f) {
        request_ = Request::kNone;
        become_student();
      } else {
        settled_ = true;
        sweep_at(best_);
      }
      return;
    }
    const LogNode<Real> left = log_node<Real>(low_), right = log_node<Real>(high_);
    const double target = budget_ * (1.0 - 0.5 * kTolerance);
    double next = hermite_root(left, right, target, false);  // NaN: unknown
    if (++round_ % 3 == 0) {
      if (high_.beta - low_.beta > 0.25 * width_) next = NAN;
      width_ = high_.beta - low_.beta;
    }
    float candidate = next != next ? halfway() : static_cast<float>(next);
    if (!(candidate > low && candidate < high)) candidate = halfway();
    if (!(candidate > low)) candidate = nextafterf(low, 1.0f);
    // Sums of float32 weights say nothing of budgets near their rounding, so no fan there.
    if (fans_ && range_ < INFINITY && budget_ > 8.0 * uncertainty_ && next == next) {
      const double spread = ::fabs(next - hermite_root(left, right, target, true));
      // The width of the window of acceptance, from f' = k2 beta where k2 is between its values at the two ends.
      const double window = kTolerance * budget_ / (next * (low_.k2 > high_.k2 ? low_.k2 : high_.k2));
      if (!(spread * range_ <= 2.0 * kLargestShift) || (sweeps_ > 1 && !(window * range_ <= kLargestShift))) {
        fan(next, spread, window);
        return;
      }
    }
    sweep_at(candidate);
  }

  // Five betas: over the whole bracket while f is a step in it, else around the candidate. At most 20 / R apart: a
  // token whose weight underflows at the first would matter at the last. All are float32 numbers, so any of them can be
  // the answer.
  TRB_HD void fan(double candidate, double spread, double window) {
    const double low = low_.beta, high = high_.beta, widest = 20.0 / range_, sixth = (high - low) / 6.0;
    double step = spread > 0.75 * window ? spread : 0.75 * window, first = candidate - 2.0 * step;
    if ((high - low) * range_ > 20.0 && spread > sixth) {
      step = sixth;
      first = low + sixth;
    }
    if (step > widest || step > sixth) {
      step = widest < sixth ? widest : sixth;
      first = candidate - 2.0 * step;
    }
    // A token with D near R takes over from the student's at beta about -log pi_S(i) / R, and f saturates above: of a
    // bracket far wider than that, the lower end.
    if (low == 0.0 && high * range_ > 60.0) step = first = 12.0 / range_;
    if (first < low + 0.5 * step) first = low + 0.5 * step;
    if (first + 4.5 * step > high) first = high - 4.5 * step;
    const double grid = nextafterf(static_cast<float>(high), 2.0f) - static_cast<float>(high);
    step = ::ceil(step / grid) * grid;
    sweep_at(static_cast<float>(::floor(first / grid) * grid), static_cast<float>(step));
  }

  // Halves the bracket: its exponent while that is the wider part, then its value.
  TRB_HD float halfway() const {
    const double low = low_.beta, high = high_.beta;
    if (low == 0.0) return static_cast<float>(high * 0.0625);
    return static_cast<float>(high > 4.0 * low ? ::sqrt(low) * ::sqrt(high) : 0.5 * (low + high));
  }

  double epsilon_;
  int max_sweeps_;
  bool fans_;
  double phi_ = 0.0;
  double range_ = INFINITY;
  double uncertainty_ = 0.0;
  double budget_ = 0.0;  // epsilon - phi, for f
  Node low_, high_, swept_;
  double width_ = 1.0;
  double kl_ = 0.0;
  float beta_ = 0.0f;
  float next_ = 0.0f;
  float step_ = 0.0f;
  float best_ = 0.0f;  // the largest beta that a sweep found feasible
  int sweeps_ = 0;
  int round_ = 0;
  int swept_node_ = 0;
  Request request_ = Request::kNone;
  bool settled_ = false;
  Status status_ = Status::kFault;
};

}  // namespace trb
