#include "float_row.h"

#include <algorithm>
#include <cmath>

#include "tilt_interpolation.h"

namespace trb::cpu {
namespace {

constexpr int kMaxSweeps = 6;
// The headroom in nats, per nat of the range of D, below which the direct form's rounding would show. The rounding is
// 3e-8 per nat on rows with large exponents, beside the 1e-7 on all rows (kStableBelow).
constexpr double kStableBelowPerNat = 4e-4;
constexpr double kMask = 1e30;  // a logit of this size or more is a mask
constexpr int64_t kSegmentTokens = kSegmentBlocks * kBlock;

float finite_or_zero(float maximum) { return maximum > -INFINITY ? maximum : 0.0f; }

// Whether the headroom limits the answer and the answer does not use it up to 3e-4.
bool misses(const Solver& solver, double epsilon) {
  const double headroom = solver.headroom(), left = epsilon - solver.kl();
  if (solver.beta() == 1.0f) return false;
  if (solver.status() != Status::kInterior) return solver.status() == Status::kStudent && headroom > 0.0;
  return !(left >= -1e-6 * headroom && left <= 3e-4 * headroom);
}

}  // namespace

FloatRow::FloatRow(int64_t vocab, bool spread, const SweepTable& sweeps)
    : vocab_(vocab),
      blocks_(block_count(vocab)),
      segments_((blocks_ + kSegmentBlocks - 1) / kSegmentBlocks),
      spread_(spread),
      sweeps_(sweeps),
      scans_(segments_),
      ends_(segments_),
      sums_(segments_ * kSegmentBlocks) {}

// Calls body(index, segment, tokens of it) for each segment, as contiguous float32 or bfloat16 padded to whole blocks.
// If the row is not in memory that way, that segment is copied. Equal logits always arrive in the same form, so that a
// row's result does not depend on its strides.
template <typename Body>
void FloatRow::for_each_segment(const RowPair& row, const Body& body) const {
  using torch::headeronly::ScalarType;
  // 1. Both rows are bfloat16 if their raw logits are, else they become float32.
  const bool alike =
      row.student.raw() && row.student.dtype == row.teacher.dtype && row.student.dtype != ScalarType::Half;
  const bool bfloat16 = alike && row.student.dtype == ScalarType::BFloat16;
  const bool in_place = alike && row.student.in_place() && row.teacher.in_place();
  for_each_part(spread_, segments_, [&](int64_t index) {
    const int64_t begin = index * kSegmentTokens, count = std::min(kSegmentTokens, vocab_ - begin);
    // 2. A segment of whole blocks is read in place if it can be.
    Segment segment;
    segment.blocks = block_count(count);
    segment.masked = scans_[index].masked;
    segment.bfloat16 = bfloat16;
    if (in_place && count == segment.blocks * kBlock) {
      const int64_t bytes = begin * (bfloat16 ? 2 : 4);
      segment.student = static_cast<const char*>(row.student.data) + bytes;
      segment.teacher = static_cast<const char*>(row.teacher.data) + bytes;
      body(index, segment, count);
      return;
    }
    // 3. Any other segment is copied and padded with -inf.
    alignas(64) float student[kSegmentTokens], teacher[kSegmentTokens];
    const int64_t padded = segment.blocks * kBlock;
    if (bfloat16) {
      row.student.load_bits(begin, count, reinterpret_cast<uint16_t*>(student));
      row.teacher.load_bits(begin, count, reinterpret_cast<uint16_t*>(teacher));
      std::fill(reinterpret_cast<uint16_t*>(student) + count, reinterpret_cast<uint16_t*>(student) + padded, 0xff80);
      std::fill(reinterpret_cast<uint16_t*>(teacher) + count, reinterpret_cast<uint16_t*>(teacher) + padded, 0xff80);
    } else {
      row.student.load(begin, count, student);
      row.teacher.load(begin, count, teacher);
      std::fill(student + count, student + padded, -INFINITY);
      std::fill(teacher + count, teacher + padded, -INFINITY);
    }
    segment.student = student;
    segment.teacher = teacher;
    body(index, segment, count);
  });
}

bool FloatRow::first_sweep(const RowPair& row, double epsilon, bool interpolate, Start* start) {
  inverse_temperature_ = static_cast<float>(row.inverse_temperature);
  const double scale = inverse_temperature_;
  // 1. D is centered by its value at the first token that neither model masks, with -inf or with a large finite number.
  // Any center within the range of D would serve, but all segments must use the same one.
  center_ = 0.0;
  for (int64_t token = 0; token < std::min(vocab_, kBlock); ++token) {
    double a, b;
    row.student.load(token, 1, 1.0, &a);
    row.teacher.load(token, 1, 1.0, &b);
    if (!(std::fabs(a) < kMask && std::fabs(b) < kMask)) continue;
    center_ = (b - a) * scale;
    break;
  }

  // 2. Each segment is scanned and swept in the frame of its own maxima.
  for_each_segment(row, [&](int64_t index, Segment& segment, int64_t) {
    SegmentScan& scan = scans_[index];
    sweeps_.scan(segment, inverse_temperature_, &scan);
    segment.masked = scan.masked;
    scan.gentle = scan.gentle && interpolate;
    SweepFrame frame{};
    frame.max_student = finite_or_zero(scan.max_student);
    frame.max_teacher = finite_or_zero(scan.max_teacher);
    frame.inverse_temperature = inverse_temperature_;
    frame.center = static_cast<float>(
        center_ - (static_cast<double>(frame.max_teacher) - static_cast<double>(frame.max_student)) * scale);
    sweeps_.ends(segment, frame, scan.gentle, &ends_[index]);
  });

  // 3. The segments give the row's maxima and its faults.
  float max_student = -INFINITY, max_teacher = -INFINITY;
  for (int64_t index = 0; index < segments_; ++index) {
    start->fault = start->fault || ends_[index].fault;
    max_student = std::max(max_student, scans_[index].max_student);
    max_teacher = std::max(max_teacher, scans_[index].max_teacher);
  }
  const bool none = !(max_student > -INFINITY && max_teacher > -INFINITY);
  start->fault = start->fault || none || max_student == INFINITY || max_teacher == INFINITY;
  if (start->fault) return true;
  max_student_ = max_student;
  max_teacher_ = max_teacher;
  offset_ = (static_cast<double>(max_teacher) - max_student) * scale - center_;

  // 4. The segments' sums are added up in the frame of the row's maxima. Gentle ones are kept apart for interpolation.
  double gentle[5][4] = {}, sum[5][4] = {}, fourth = 0.0, lost_student = 0.0, lost_teacher = 0.0;
  float min_d = INFINITY, max_d = -INFINITY;
  for (int64_t index = 0; index < segments_; ++index) {
    EndsSums& part = ends_[index];
    const double at_zero = std::exp((finite_or_zero(scans_[index].max_student) - max_student) * scale);
    const double at_one = std::exp((finite_or_zero(scans_[index].max_teacher) - max_teacher) * scale);
    const double p = std::sqrt(std::sqrt(at_zero)), q = std::sqrt(std::sqrt(at_one));
    const double factor[5] = {at_zero, p * p * p * q, p * p * q * q, p * q * q * q, at_one};
    auto& group = scans_[index].gentle ? gentle : sum;
    for (int node = 0; node < 5; ++node)
      for (int k = 0; k < 4; ++k) group[node][k] += part.node[node][k] * factor[node];
    fourth += part.fourth * at_zero;
    lost_student += part.lost_student * at_zero;
    lost_teacher += part.lost_teacher * at_one;
    for (int64_t block = 0; block < kSegmentBlocks; ++block) {
      part.student[block] *= at_zero;
      part.one[block] *= at_one;
    }
    const SegmentScan& scan = scans_[index];
    min_d = std::min(min_d, scan.masked ? part.min_d : static_cast<float>(scan.min_gap * scale - center_));
    max_d = std::max(max_d, scan.masked ? part.max_d : static_cast<float>(scan.max_gap * scale - center_));
  }
  for (int node = 0; node < 5; node += 2)
    for (int k = 0; k < 4; ++k) sum[node][k] += gentle[node][k];
  // 5. The row goes to double precision if its range is too large for float32 sums, or too little of a model is common.
  zero_mass_ = sum[0][0];
  one_mass_ = sum[4][0];
  student_mass_ = zero_mass_ + lost_student;
  teacher_mass_ = one_mass_ + lost_teacher;
  if (!(min_d <= max_d)) {  // disjoint supports
    start->phi = INFINITY;
    return true;
  }
  start->range = static_cast<double>(max_d) - min_d;
  if (!(start->range <= kLargestRangeOnCpu)) return false;
  if (!(zero_mass_ > kLeastCommonMass) || !(one_mass_ > kLeastCommonMass)) return false;
  // If the models' maxima are further apart than that, the center is a bad one and D has lost its digits.
  if (!(std::fabs(offset_) <= kLargestRangeOnCpu)) return false;
  // 6. The start of the search: phi, the uncertainty of f, and the nodes.
  start->phi = std::log1p(lost_student / zero_mass_);
  start->uncertainty = 4e-6 + 2e-7 * start->range;
  zero_mean_ = sum[0][1] / zero_mass_;
  const bool known = add_gentle(gentle, epsilon - start->phi, sum, &fourth);
  for (int node = 0; node < 5; ++node) {
    // Between two models that exclude each other's tokens the sums underflow.
    if (sum[node][0] > kLeastMass) start->node[start->nodes++] = node_at(node, sum[node]);
  }
  const double m = zero_mean_, second = sum[0][2] / zero_mass_, third = sum[0][3] / zero_mass_;
  const double k2 = start->node[0].k2;
  if (known) {
    start->node[0].k4 =
        fourth / zero_mass_ - 4.0 * m * third + 6.0 * m * m * second - 3.0 * m * m * m * m - 3.0 * k2 * k2;
  }
  return true;
}

Node FloatRow::node_at(int quarters, const double* sums) const {
  const double beta = 0.25 * quarters;
  return node_of_moments(beta, sums, std::log(sums[0]) + beta * offset_ - std::log(zero_mass_));
}

// Adds the gentle segments' interpolated moments at beta = 1/4 and 3/4, and their fourth moment at 0. Returns false if
// the fourth moment is not known. A node stays empty if it is not known well enough to bound the answer.
bool FloatRow::add_gentle(const double (*gentle)[4], double headroom, double (*sum)[4], double* fourth) const {
  if (gentle[0][0] == 0.0 && gentle[4][0] == 0.0) return true;
  bool known = false;
  if (gentle[0][0] > kLeastMass && gentle[2][0] > kLeastMass && gentle[4][0] > kLeastMass) {
    const double* const swept[3] = {gentle[0], gentle[2], gentle[4]};
    const TiltInterpolation<4> by_four(swept, offset_);
    const TiltInterpolation<3> by_three(swept, offset_);
    for (int node = 3; node > 0; node -= 2) {
      double fine[4], coarse[4];
      const RawMoments four = by_four.moments(0.25 * node), three = by_three.moments(0.25 * node);
      for (int k = 0; k < 4; ++k) {
        fine[k] = sum[node][k] + four.s[k];
        coarse[k] = sum[node][k] + three.s[k];
      }
      const Node better = node_at(node, fine), worse = node_at(node, coarse);
      const double doubt = std::fabs(better.f - worse.f);
      known = better.f > 0.0 && doubt <= 0.01 * better.f && 4.0 * doubt < std::fabs(better.f - headroom) &&
              std::fabs(better.k2 - worse.k2) <= 0.05 * better.k2;
      for (int k = 0; k < 4; ++k) sum[node][k] = known ? fine[k] : 0.0;
    }
    const double four = by_four.moments(0.0).s[4];
    known = known && std::fabs(four - by_three.moments(0.0).s[4]) <= 0.2 * four;
    *fourth += four;
  } else {
    sum[1][0] = sum[3][0] = 0.0;
  }
  return known;
}

SweepFrame FloatRow::frame_of(const SweepPlan& plan) const {
  SweepFrame frame{};
  frame.max_student = max_student_;
  frame.max_teacher = max_teacher_;
  frame.inverse_temperature = inverse_temperature_;
  frame.center = static_cast<float>(plan.center - offset_);
  frame.beta = plan.beta;
  frame.spacing = plan.spacing;
  frame.shift = static_cast<float>(plan.kappa * kLog2e);
  return frame;
}

int FloatRow::exact_sweep(const RowPair& row, const SweepFrame& frame, Form form, Node* nodes) {
  const auto sweep = form == Form::kStable ? sweeps_.stable : form == Form::kFan ? sweeps_.fan : sweeps_.direct;
  for_each_segment(row, [&](int64_t index, const Segment& segment, int64_t) {
    sweep(segment, frame, &sums_[index * kSegmentBlocks]);
  });
  const int count = form == Form::kFan ? 5 : 1, numbers = form == Form::kFan ? 20 : form == Form::kStable ? 6 : 4;
  double sum[20] = {};
  for (int64_t block = 0; block < blocks_; ++block)
    for (int k = 0; k < numbers; ++k) sum[k] += sums_[block].s[k];
  const double moved = static_cast<double>(frame.center) + offset_;
  for (int i = 0; i < count; ++i) {
    const double beta = frame.beta + i * static_cast<double>(frame.spacing);
    nodes[i] =
        form == Form::kStable
            ? node_of_stable_sums(beta, sum)
            : node_of_moments(beta, sum + 4 * i, std::log(sum[4 * i]) + frame.shift / kLog2e - std::log(zero_mass_));
    nodes[i].mean += moved;  // D is moved back to the row's center
    nodes[i].log_gain += beta * moved;
  }
  return count;
}

bool FloatRow::any_gentle() const {
  return std::any_of(scans_.begin(), scans_.end(), [](const SegmentScan& scan) { return scan.gentle; });
}

// Returns false if the range of float32 exponents is too small for the row.
bool FloatRow::search(const RowPair& row, double epsilon, bool interpolate, Search* found) {
  Start start;
  ++found->sweeps;
  if (!first_sweep(row, epsilon, interpolate, &start)) return false;
  found->solver = Solver(epsilon, kMaxSweeps, true);
  Solver& solver = found->solver;
  solver.begin(start);
  const double stable_below = std::max(kStableBelow, kStableBelowPerNat * start.range);
  while (solver.next()) {
    Node nodes[5];
    const SweepPlan plan = plan_sweep(solver, std::log(zero_mass_), zero_mean_, offset_, stable_below);
    if (!plan.in_range) return false;
    found->form = plan.form;
    found->frame = frame_of(plan);
    const int count = exact_sweep(row, found->frame, found->form, nodes);
    ++found->sweeps;
    solver.update(nodes, count, found->form != Form::kFan || solver.headroom() >= stable_below);
  }
  return true;
}

bool FloatRow::solve(const RowPair& row, double epsilon, RowAnswer* answer) {
  // 1. The search. Interpolated nodes could mislead it on a row unlike all that were tried, so a failed search is
  // repeated with swept nodes, which cannot.
  Search found{Solver(epsilon, kMaxSweeps, true)};
  bool reached = search(row, epsilon, true, &found);
  if (reached && misses(found.solver, epsilon) && any_gentle()) reached = search(row, epsilon, false, &found);
  answer->sweeps = found.sweeps;
  answer->origin_student = answer->max_student = max_student_;
  answer->origin_teacher = answer->max_teacher = max_teacher_;
  // 2. Six sweeps do not find the answer if f rises almost at once. The row is then solved in double precision.
  if (!reached || misses(found.solver, epsilon)) return false;
  // 3. The answer, with log mu's normalizer and the mass of mu per block: inside (0, 1) from the last sweep, moved by
  // the solver's final shift, and at the ends from the first sweep.
  const Solver& solver = found.solver;
  answer->status = solver.status();
  answer->beta = solver.beta();
  answer->kl = solver.kl();
  if (solver.status() == Status::kFault) return true;
  answer->log_student = std::log(student_mass_);
  answer->log_teacher = std::log(teacher_mass_);
  answer->mass.resize(blocks_);
  if (solver.status() == Status::kInterior) {
    const double h = solver.shift();
    const Node& swept = solver.swept();
    answer->log_norm = std::log(zero_mass_) + swept.log_gain - solver.beta() * offset_ +
                       h * (swept.mean + h * (0.5 * swept.k2 + h * swept.k3 / 6.0));
    for (int64_t block = 0; block < blocks_; ++block) {
      const double* sums = sums_[block].s + 4 * solver.swept_node();
      answer->mass[block] = found.form == Form::kStable
                                ? shifted_stable_mass(sums, sums[0] + sums[1] + sums[2], h / found.frame.beta)
                                : shifted_mass(sums, h);
    }
  } else {
    const bool student = solver.status() == Status::kStudent;
    answer->log_norm = std::log(student ? student_mass_ : one_mass_);
    for (int64_t block = 0; block < blocks_; ++block) {
      const EndsSums& segment = ends_[block / kSegmentBlocks];
      // Two indexed reads instead of one index of a conditional, because g++ 12 with -fsanitize=undefined reads the
      // first element every time.
      answer->mass[block] = student ? segment.student[block % kSegmentBlocks] : segment.one[block % kSegmentBlocks];
    }
  }
  return true;
}

void FloatRow::residual(const RowPair& row, const RowAnswer& answer, std::vector<double>* mass) {
  SweepFrame frame{};
  frame.max_student = answer.max_student;
  frame.max_teacher = answer.max_teacher;
  frame.inverse_temperature = inverse_temperature_;
  frame.center = static_cast<float>(zero_mean_ - offset_);  // D is near 0 for tokens that are likely under the student
  frame.beta = answer.beta;
  frame.shift = static_cast<float>(answer.log_student * kLog2e);
  frame.log_gain =
      static_cast<float>(answer.log_norm - answer.log_student - answer.beta * static_cast<double>(frame.center));
  for_each_segment(row, [&](int64_t index, const Segment& segment, int64_t) {
    sweeps_.residual(segment, frame, &sums_[index * kSegmentBlocks]);
  });
  mass->resize(blocks_);
  for (int64_t block = 0; block < blocks_; ++block) (*mass)[block] = sums_[block].s[0];
}

void FloatRow::write_log_probs(const RowPair& row, const RowAnswer& answer, float* out) const {
  SweepFrame frame{};
  frame.max_student = answer.max_student;
  frame.max_teacher = answer.max_teacher;
  frame.inverse_temperature = inverse_temperature_;
  frame.beta = answer.beta;
  frame.shift = static_cast<float>(answer.log_norm);
  for_each_segment(row, [&](int64_t index, const Segment& segment, int64_t count) {
    sweeps_.log_probs(segment, frame, count, out + index * kSegmentTokens);
  });
}

}  // namespace trb::cpu
