// Checks csrc/solver/ without torch and without rows, from sums only. Prints one line per failed check. The exit status
// is their number.
#include "solver/solver.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

using namespace trb;

static int failures = 0;

#define EXPECT(condition, ...)                    \
  if (!(condition)) {                             \
    ++failures;                                   \
    std::printf("%s:%d: ", #condition, __LINE__); \
    std::printf(__VA_ARGS__);                     \
    std::printf("\n");                            \
  }

// Two atoms: D = 0 with probability 1 - p under the student, D = range with probability p. Everything is known in
// closed form, and for a large range f is the step that plain Newton cannot climb.
struct TwoAtoms {
  double p, range;

  Tilt tilt(double beta) const {
    const double q = std::log(p) + beta * range, rest = std::log1p(-p), peak = std::max(q, rest);
    const double w = std::exp(q - peak), v = std::exp(rest - peak), s = w / (w + v);
    Tilt tilt;
    tilt.weight = {peak, w + v};
    tilt.mean = s * range;
    tilt.m2 = s * (1 - s) * range * range;
    tilt.m3 = tilt.m2 * range * (1 - 2 * s);
    tilt.below = s * (q - peak) + (1 - s) * (rest - peak);
    tilt.x = s * std::log(p) + (1 - s) * std::log1p(-p);
    return tilt;
  }

  Node node(double beta) const { return node_of(beta, tilt(beta), tilt(0)); }

  Start start() const {
    Start start;
    start.range = range;
    start.nodes = 2;
    start.node[0] = node(0);
    start.node[1] = node(1);
    return start;
  }

  // Answers the solver's requests until it has none left.
  void solve(Solver& solver, const Start& from) const {
    solver.begin(from);
    while (solver.next()) {
      Node nodes[5];
      const int count = solver.spacing() > 0 ? 5 : 1;
      for (int i = 0; i < count; ++i) nodes[i] = node(solver.swept_beta() + i * (double)solver.spacing());
      solver.update(nodes, count, true);
    }
  }
};

static void finds_the_largest_feasible_float() {
  for (bool fans : {false, true}) {
    for (double range : {1e-3, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e30}) {
      for (double p : {0.5, 0.1, 1e-3, 1e-6, 1e-12, 1e-100}) {
        for (double epsilon : {1e-6, 1e-4, 1e-2, 0.1, 1.0, 5.0}) {
          if (fans && range > 1e3) continue;  // such rows are swept in double precision, which has no fans
          const TwoAtoms atoms{p, range};
          Solver solver(epsilon, 64, fans);
          atoms.solve(solver, atoms.start());
          const float beta = solver.beta();
          const double kl = atoms.node(beta).f;
          const auto case_ = [&] {
            std::printf("  fans %d range %g p %g epsilon %g beta %.9g KL %.9g: ", fans, range, p, epsilon, beta, kl);
          };
          EXPECT(kl <= epsilon * (1 + 1e-9), (case_(), "infeasible"));
          EXPECT(std::fabs(solver.kl() - kl) <= 1e-12 + 1e-4 * kl, (case_(), "reported otherwise"));
          const bool tight =
              beta == 1.0f || kl >= epsilon * (1 - 1.01 * kTolerance) || atoms.node(nextafterf(beta, 1.0f)).f > epsilon;
          EXPECT(tight, (case_(), "not the largest"));
          EXPECT(solver.sweeps() < 64, (case_(), "too many sweeps"));
          EXPECT(range > 100 || solver.sweeps() <= 8, (case_(), "many sweeps"));
          const double shift = solver.status() == Status::kInterior ? solver.shift() : 0.0;
          EXPECT(std::fabs(shift) * range <= kLargestShift * (1 + 1e-6), (case_(), "shifted too far"));
        }
      }
    }
  }
}

// An inexact first sweep must not decide: nodes that are wrong by up to the stated uncertainty must not change the
// answer.
static void inexact_nodes_only_steer() {
  for (double error : {-1.0, 1.0}) {
    for (double epsilon : {1e-3, 0.0231, 0.1, 0.5}) {
      const TwoAtoms atoms{0.1, 3.0};
      Start start = atoms.start();
      start.nodes = 3;
      start.node[2] = start.node[1];
      start.node[1] = atoms.node(0.5);
      start.uncertainty = 0.2 * atoms.node(0.5).f;
      for (int i = 1; i < 3; ++i) start.node[i].f += error * 0.99 * start.uncertainty;
      Solver solver(epsilon, 64, true);
      atoms.solve(solver, start);
      const double kl = atoms.node(solver.beta()).f, at_one = atoms.node(1).f;
      EXPECT(kl <= epsilon * (1 + 1e-9), "epsilon %g: KL %g", epsilon, kl);
      EXPECT(kl >= epsilon * (1 - 1.01 * kTolerance) || (solver.beta() == 1.0f && at_one <= epsilon),
             "epsilon %g: KL %g", epsilon, kl);
    }
  }
}

// A first sweep that is wrong by more than it says makes an infeasible beta look feasible. The exact sweep that
// confirms the answer must reject it.
static void an_infeasible_beta_is_never_settled() {
  for (int max_sweeps : {2, 3, 4, 64}) {
    for (double epsilon : {1e-3, 0.0231, 0.1}) {
      const TwoAtoms atoms{0.1, 3.0};
      Start start = atoms.start();
      start.nodes = 3;
      start.node[2] = start.node[1];
      start.node[1] = atoms.node(0.9);
      start.node[1].f = 0.5 * epsilon;
      start.uncertainty = 1e-6;
      Solver solver(epsilon, max_sweeps, false);
      atoms.solve(solver, start);
      const double kl = atoms.node(solver.beta()).f;
      EXPECT(kl <= epsilon * (1 + 1e-9), "%d sweeps, epsilon %g: beta %g, KL %g", max_sweeps, epsilon, solver.beta(),
             kl);
      EXPECT(std::fabs(solver.kl() - kl) <= 1e-12, "%d sweeps, epsilon %g: reported %g", max_sweeps, epsilon,
             solver.kl());
    }
  }
}

static void merging_parts_gives_the_whole() {
  std::mt19937_64 random(0);
  std::normal_distribution<double> normal;
  std::vector<double> t(500), d(500);
  for (size_t i = 0; i < t.size(); ++i) {
    t[i] = 2 * normal(random);
    d[i] = 1e6 + normal(random);  // an offset that raw moments would drown in
  }
  const auto direct = [&](size_t begin, size_t end) {
    Tilt part;
    for (size_t i = begin; i < end; ++i) part.weight.peak = std::max(part.weight.peak, t[i]);
    for (size_t i = begin; i < end; ++i) part.weight.mass += std::exp(t[i] - part.weight.peak);
    for (size_t i = begin; i < end; ++i) part.mean += std::exp(t[i] - part.weight.peak) * d[i] / part.weight.mass;
    for (size_t i = begin; i < end; ++i) {
      const double w = std::exp(t[i] - part.weight.peak) / part.weight.mass, c = d[i] - part.mean;
      part.m2 += w * c * c;
      part.m3 += w * c * c * c;
    }
    return part;
  };
  const Tilt whole = direct(0, t.size());
  for (size_t size : {1, 7, 100, 499}) {
    Tilt merged;
    merged.merge(Tilt{});  // an empty part changes nothing
    for (size_t begin = 0; begin < t.size(); begin += size)
      merged.merge(direct(begin, std::min(begin + size, t.size())));
    EXPECT(std::fabs(merged.weight.log() - whole.weight.log()) < 1e-13, "size %zu", size);
    EXPECT(std::fabs(merged.mean - whole.mean) < 1e-8, "size %zu", size);
    EXPECT(std::fabs(merged.m2 - whole.m2) < 1e-8 * whole.m2, "size %zu: %.12g %.12g", size, merged.m2, whole.m2);
    EXPECT(std::fabs(merged.m3 - whole.m3) < 1e-7 * std::pow(whole.m2, 1.5), "size %zu", size);
  }
}

static void ends_settle_without_another_sweep() {
  const TwoAtoms atoms{0.3, 2.0};
  struct Case {
    double epsilon;
    Status status;
  };
  for (const Case& c : {Case{0.0, Status::kStudent}, Case{INFINITY, Status::kTeacher}, Case{10.0, Status::kTeacher},
                        Case{-1.0, Status::kFault}, Case{NAN, Status::kFault}}) {
    Solver solver(c.epsilon, 64, true);
    solver.begin(atoms.start());
    EXPECT(!solver.next() && solver.status() == c.status && solver.sweeps() == 1, "epsilon %g", c.epsilon);
  }
  Start disjoint;
  disjoint.phi = INFINITY;
  for (double epsilon : {0.1, (double)INFINITY}) {
    Solver solver(epsilon, 64, true);
    solver.begin(disjoint);
    EXPECT(!solver.next() && solver.status() == Status::kStudent && solver.kl() == 0, "epsilon %g", epsilon);
  }
  Start masked = atoms.start();
  masked.phi = std::log(2.0);
  for (double epsilon : {0.69, 0.70}) {
    Solver solver(epsilon, 64, true);
    atoms.solve(solver, masked);
    EXPECT((solver.beta() > 0) == (epsilon > 0.6932), "epsilon %g beta %g", epsilon, solver.beta());
    EXPECT(solver.kl() <= epsilon, "epsilon %g KL %g", epsilon, solver.kl());
  }
}

static void nonsense_sums_end_at_the_student() {
  const TwoAtoms atoms{0.1, 10.0};
  for (int most : {6, 64}) {
    for (bool fans : {false, true}) {
      Node nonsense[5];
      Solver solver(0.01, most, fans);
      solver.begin(atoms.start());
      while (solver.next()) {
        for (int i = 0; i < 5; ++i) {
          nonsense[i] = {solver.swept_beta() + i * (double)solver.spacing(), NAN, NAN, NAN, NAN, NAN, NAN};
        }
        solver.update(nonsense, solver.spacing() > 0 ? 5 : 1, true);
      }
      EXPECT(solver.beta() == 0 && solver.sweeps() <= most, "beta %g after %d sweeps", solver.beta(), solver.sweeps());
    }
  }
}

int main() {
  finds_the_largest_feasible_float();
  inexact_nodes_only_steer();
  an_infeasible_beta_is_never_settled();
  merging_parts_gives_the_whole();
  ends_settle_without_another_sweep();
  nonsense_sums_end_at_the_student();
  return std::min(failures, 100);
}
