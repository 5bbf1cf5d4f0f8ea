// Finds beta* = max { beta in [0, 1] : KL(mu_beta || pi_S) <= epsilon } of a row. The solver is a state machine that
// asks for sweeps and never reads the row itself, so that CPU threads, unit tests with synthetic sums, and GPU blocks
// with a row in double precision or a top-k teacher run the same code. csrc/cuda/kernel/search_state.cuh is the same
// search for the other rows of a GPU.
//
//   Solver solver(epsilon, max_sweeps);
//   solver.begin(start);                                              // from the sums of the first sweep
//   while (solver.next()) solver.update(nodes at solver.swept_beta() + i solver.spacing(), how many, exact);
//   solver.beta(), solver.kl();    // mu is the distribution at node swept_node() of the last sweep, moved by shift()
//
// The solver works within its headroom, epsilon - phi, which is what f may reach (cumulants.h).
//
// The search is a safeguarded Newton method. The bracket [low, high] holds the root, and the next beta comes from the
// Hermite interpolation of log(f / beta^2) across it (hermite.h), which stays inside the bracket even if f rises almost
// at once. A bracket that does not shrink fourfold in three sweeps is halved. If it does not in three more, each sweep
// halves it until it does: between logits masked by -65504, f rises within a few float32 numbers of 1, where no
// polynomial follows it. If the quintic and the cubic interpolation differ by more than the final shift below can
// bridge, the solver asks for a fan, a sweep at five betas, provided that the device has one.
//
// The final shift needs no sweep. |A''''| <= R^2 A'' and |A'''| <= R A'' for a variable of range R, so
//   f(beta + h) = f + f' h + f'' h^2 / 2 + A''' h^3 / 3 + err,
//   |err| <= E(h) = (beta + |h|) A'' R^2 |h|^3 e^{R |h|} / 6,
// and beta + h is the answer if the cubic equals (1 - tolerance / 2) headroom there and E(h) <= tolerance / 2 headroom.
// f <= headroom is then certain, and the answer hardly depends on which beta was swept.
//
// Contract: beta is a float32 number, because it is returned as one and samples follow mu at exactly that number. It is
// feasible, and f(beta) >= (1 - tolerance) headroom unless no float32 number lies that close or max_sweeps is reached.
// Only exactly swept nodes decide. The inexact nodes of a first float32 sweep only narrow the bracket.
#pragma once

#include <cmath>

#include "hermite.h"

namespace trb {

constexpr double kTolerance = 2e-4;
constexpr double kLargestShift = 0.05;  // of |h| R; four terms then give a shifted mass to 3e-7 (cumulants.h)

enum class Status { kFault, kStudent, kTeacher, kInterior };

// What the solver needs to know of the first sweep.
struct Start {
  bool fault = false;        // some logit is NaN or +inf, or a model has no finite logit
  double phi = 0.0;          // -log pi_S(C); inf if C is empty
  double range = INFINITY;   // R = max_C D - min_C D
  double uncertainty = 0.0;  // absolute error of f at the nodes; 0 if they are exact
  int nodes = 0;             // node[0] is at beta = 0, the last one at beta = 1
  Node node[5];
};

// The start from the sums of a first sweep in double precision.
TRB_HD inline Start start_of(const Ends& ends) {
  Start start;
  start.fault = ends.fault || ends.student.empty() || ends.teacher.empty();
  if (start.fault) return start;
  const bool disjoint = ends.zero.weight.empty();
  // Exactly 0 if the teacher masks nothing, because both sums are then the same additions.
  const double phi = disjoint ? INFINITY : ends.student.log() - ends.zero.weight.log();
  start.phi = phi > 0.0 ? phi : 0.0;
  if (disjoint) return start;
  start.range = ends.max_d - ends.min_d;
  start.nodes = 2;
  start.node[0] = node_of(0.0, ends.zero, ends.zero);
  start.node[1] = node_of(1.0, ends.one, ends.zero);
  return start;
}

class Solver {
 public:
  TRB_HD Solver(double epsilon, int max_sweeps, bool fans) : epsilon_(epsilon), max_sweeps_(max_sweeps), fans_(fans) {}

  TRB_HD void begin(const Start& start) {
    // 1. A row at fault, and a negative or NaN epsilon, have no answer.
    sweeps_ = 1;
    status_ = Status::kFault;
    if (start.fault || !(epsilon_ >= 0.0)) return;
    beta_ = 0.0f;
    phi_ = start.phi;
    range_ = start.range;
    uncertainty_ = start.uncertainty;
    headroom_ = epsilon_ - phi_;
    // 2. Without headroom the answer is the student: epsilon = 0, a teacher that masks too much, or no common support
    // (phi = inf, and inf - inf is NaN).
    status_ = Status::kStudent;
    if (!(epsilon_ > 0.0) || !(headroom_ > 0.0)) return;

    // 3. If beta = 1 is feasible, the answer is the teacher. The divergence of nearly equal models is lost in the
    // rounding of the first sweep, so an exact sweep decides there.
    const Node& one = start.node[start.nodes - 1];
    const double doubt = start.uncertainty, doubtful = 1e-4 * (doubt > 0.0);
    if (headroom_ == INFINITY || (one.f <= headroom_ - doubt && one.f >= doubtful)) {
      status_ = Status::kTeacher;
      beta_ = 1.0f;
      kl_ = phi_ + one.f;
      return;
    }
    // 4. Otherwise the bracket begins at the two neighboring nodes that are certain to be on either side of the root.
    status_ = Status::kInterior;
    low_ = start.node[0];
    high_ = one;
    for (int i = 1; i + 1 < start.nodes; ++i) {
      const Node& node = start.node[i];
      if (node.f <= headroom_ - doubt) low_ = node;
      if (node.f > headroom_ + doubt) {
        high_ = node;
        break;
      }
    }
    best_ = static_cast<float>(low_.beta);
    width_ = high_.beta - low_.beta;
    // 5. A node at beta = 1 that may be feasible is swept exactly before any other beta.
    if (one.f <= headroom_ + doubt) {
      sweep_at(1.0f);
    } else {
      wanted_ = Next::kChoose;
    }
  }

  // Takes in the nodes of the sweep that was asked for, in ascending beta. Inexact nodes (float32 sums of a small
  // divergence) only narrow the bracket.
  TRB_HD void update(const Node* nodes, int count, bool exact) {
    // 1. A feasible node at beta = 1, or a sweep that only had to confirm a beta, ends the search.
    ++sweeps_;
    wanted_ = Next::kNothing;
    swept_ = nodes[0];
    swept_node_ = 0;
    if ((confirming_ || nodes[0].beta == 1.0) && nodes[0].f <= headroom_) {
      finish(nodes[0].f);
      return;
    }
    if (confirming_) {  // only inexact sums had made it look feasible
      become_student();
      return;
    }
    // 2. The final shift from an exact node ends the search.
    for (int i = 0; exact && i < count; ++i) {
      if (shift_to_target(nodes[i])) {
        swept_ = nodes[i];
        swept_node_ = i;
        return;
      }
    }
    // 3. So does an exact node that is feasible and within the tolerance.
    for (int i = count - 1; exact && i >= 0; --i) {
      if (nodes[i].f <= headroom_ && nodes[i].f >= headroom_ * (1.0 - kTolerance)) {
        swept_ = nodes[i];
        swept_node_ = i;
        next_ = static_cast<float>(nodes[i].beta);
        finish(nodes[i].f);
        return;
      }
    }
    // 4. Otherwise the nodes narrow the bracket, and the search continues inside it.
    const double doubt = exact ? 0.0 : uncertainty_;
    for (int i = 0; i < count; ++i) {
      const Node& node = nodes[i];
      if (node.f <= headroom_ - doubt && node.beta > low_.beta) {
        low_ = node;
        if (exact) best_ = round_down(node.beta);
      }
    }
    for (int i = count - 1; i >= 0; --i) {
      if (!(nodes[i].f <= headroom_ + doubt) && nodes[i].beta < high_.beta && nodes[i].beta > low_.beta)
        high_ = nodes[i];
    }
    wanted_ = Next::kChoose;
  }

  // Whether another sweep is needed. If not, the answer is final.
  TRB_HD bool next() {
    if (wanted_ == Next::kChoose) propose();
    return wanted_ == Next::kSweep;
  }

  TRB_HD float swept_beta() const { return next_; }  // of the sweep asked for; after it, of the last sweep
  TRB_HD float spacing() const { return spacing_; }  // 0: a sweep at one beta; else a fan of five
  TRB_HD int swept_node() const { return swept_node_; }
  TRB_HD double headroom() const { return headroom_; }  // epsilon - phi, nats
  TRB_HD const Node& low() const { return low_; }       // the bracket, from which a frame is chosen
  TRB_HD const Node& high() const { return high_; }

  TRB_HD Status status() const { return status_; }
  TRB_HD float beta() const { return status_ == Status::kFault ? NAN : beta_; }
  TRB_HD double kl() const { return status_ == Status::kFault ? NAN : kl_; }
  TRB_HD int sweeps() const { return sweeps_; }
  TRB_HD const Node& swept() const { return swept_; }
  TRB_HD double shift() const { return static_cast<double>(beta_) - swept_.beta; }

 private:
  enum class Next { kNothing, kSweep, kChoose };  // kChoose: a sweep at a beta that is not yet chosen

  TRB_HD void sweep_at(float beta, float spacing = 0.0f) {
    next_ = beta;
    spacing_ = spacing;
    wanted_ = Next::kSweep;
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
    const double target = headroom_ * (1.0 - 0.5 * kTolerance);
    double h = 0.0;
    for (int i = 0; i < 4; ++i) {
      h += (target - cubic(node, h)) / (node.f1() + h * (node.f2() + h * node.k3));
    }
    const float beta = static_cast<float>(node.beta + h);
    h = static_cast<double>(beta) - node.beta;
    const double reach = ::fabs(h) * range_;
    const double error =
        (node.beta + ::fabs(h)) * node.k2 * range_ * range_ * ::fabs(h * h * h) * (1.0 / 6.0) * std::exp(reach);
    const double f = cubic(node, h);
    if (!(reach <= kLargestShift && beta > 0.0f && beta <= 1.0f)) return false;
    if (!(error <= 0.5 * kTolerance * headroom_ && f + error <= headroom_ &&
          f - error >= headroom_ * (1.0 - kTolerance))) {
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
    // 1. When the bracket is empty or one sweep is left, that sweep goes to the largest feasible beta that was seen,
    // because sampling needs the sums at the answer.
    if (nextafterf(low, 1.0f) >= high || sweeps_ + 1 >= max_sweeps_) {
      if (best_ == 0.0f) {
        wanted_ = Next::kNothing;
        become_student();
      } else {
        confirming_ = true;
        sweep_at(best_);
      }
      return;
    }
    // 2. The candidate is the root of the interpolation, or halves the bracket if there is none or progress is slow.
    const LogNode left = log_node(low_), right = log_node(high_);
    const double target = headroom_ * (1.0 - 0.5 * kTolerance);
    double next = hermite_root(left, right, target, false);  // NaN: unknown
    if (++round_ % 3 == 0) {
      slow_ = high_.beta - low_.beta > 0.25 * width_ ? slow_ + 1 : 0;
      width_ = high_.beta - low_.beta;
      if (slow_ == 1) next = NAN;
    }
    if (slow_ > 1) next = NAN;
    float candidate = next != next ? halfway() : static_cast<float>(next);
    if (!(candidate > low && candidate < high)) candidate = halfway();
    if (!(candidate > low)) candidate = nextafterf(low, 1.0f);
    // 3. A fan is swept if the interpolation is uncertain by more than the final shift can bridge. A fan's float32 sums
    // say nothing about a headroom near their rounding, so there is no fan then.
    if (fans_ && range_ < INFINITY && headroom_ > 8.0 * uncertainty_ && next == next) {
      const double spread = ::fabs(next - hermite_root(left, right, target, true));
      // The width of the betas within the tolerance, from f' = k2 beta with the larger k2 of the two ends.
      const double window = kTolerance * headroom_ / (next * (low_.k2 > high_.k2 ? low_.k2 : high_.k2));
      if (!(spread * range_ <= 2.0 * kLargestShift) || (sweeps_ > 1 && !(window * range_ <= kLargestShift))) {
        fan(next, spread, window);
        return;
      }
    }
    sweep_at(candidate);
  }

  // Asks for five betas: over the whole bracket if f rises almost at once inside it, else around the candidate. They
  // are at most 20 / R apart, because otherwise a token whose weight underflows at the first would matter at the last.
  // All are float32 numbers, so that each can be the answer.
  TRB_HD void fan(double candidate, double spread, double window) {
    const double low = low_.beta, high = high_.beta, widest = 20.0 / range_, sixth = (high - low) / 6.0;
    double spacing = spread > 0.75 * window ? spread : 0.75 * window, first = candidate - 2.0 * spacing;
    if ((high - low) * range_ > 20.0 && spread > sixth) {
      spacing = sixth;
      first = low + sixth;
    }
    if (spacing > widest || spacing > sixth) {
      spacing = widest < sixth ? widest : sixth;
      first = candidate - 2.0 * spacing;
    }
    // A token with D near R outweighs the student's likely tokens from beta of about -log pi_S(i) / R on, and f
    // saturates above. In a bracket that is far wider the root lies at its lower end.
    if (low == 0.0 && high * range_ > 60.0) spacing = first = 12.0 / range_;
    if (first < low + 0.5 * spacing) first = low + 0.5 * spacing;
    if (first + 4.5 * spacing > high) first = high - 4.5 * spacing;
    const double grid = nextafterf(static_cast<float>(high), 2.0f) - static_cast<float>(high);
    spacing = ::ceil(spacing / grid) * grid;
    sweep_at(static_cast<float>(::floor(first / grid) * grid), static_cast<float>(spacing));
  }

  // The middle of the bracket: of its exponents while they differ, then of its values.
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
  double headroom_ = 0.0;  // epsilon - phi
  Node low_, high_, swept_;
  double width_ = 1.0;
  double kl_ = 0.0;
  float beta_ = 0.0f;
  float next_ = 0.0f;
  float spacing_ = 0.0f;
  float best_ = 0.0f;  // the largest beta that a sweep found feasible
  int sweeps_ = 0;
  int round_ = 0;
  int slow_ = 0;  // how many times in a row three sweeps did not shrink the bracket fourfold
  int swept_node_ = 0;
  Next wanted_ = Next::kNothing;
  bool confirming_ = false;
  Status status_ = Status::kFault;
};

}  // namespace trb
