#include "top_k_row.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "invert_cdf.h"

namespace trb::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr uint16_t kMinusInfinityBits = 0xff80;  // of bfloat16

// The mass of mu, or of max(mu - pi_S, 0), on tokens whose mass under mu is e^log_mu and which share one value of
// log(mu / pi_S).
double mass_of(double log_mu, double log_ratio, bool residual) {
  if (!residual) return std::exp(log_mu);
  return log_ratio > 0.0 ? -std::expm1(-log_ratio) * std::exp(log_mu) : 0.0;
}

}  // namespace

TopKRow::TopKRow(int64_t vocab, bool spread, const SweepTable& sweeps)
    : vocab_(vocab), blocks_(block_count(vocab)), spread_(spread), sweeps_(sweeps), weights_(blocks_) {}

const RowAnswer& TopKRow::solve(const TopKPair& row, double epsilon) {
  row_ = row;
  answer_ = RowAnswer{};
  answer_.beta = NAN;
  answer_.kl = NAN;
  if (read_teacher() && sweep_rest()) {
    set_outcomes();
    const int64_t outcomes = static_cast<int64_t>(student_.size());
    DoubleRow<OutcomePair> solver(outcomes, false);
    solver.solve({{student_.data()}, {teacher_.data()}, outcomes, 1.0}, epsilon, &answer_);
    log_mu_.resize(outcomes);
    const double beta = answer_.beta;
    for (int64_t i = 0; i < outcomes; ++i) {
      const double x = student_[i] - answer_.origin_student, y = teacher_[i] - answer_.origin_teacher;
      const bool supported = x > -INFINITY && (beta == 0.0 || y > -INFINITY);
      // At beta = 0 the teacher's may be -inf, and 0 * -inf is NaN.
      log_mu_[i] = !supported ? -INFINITY : (beta == 0.0 ? x : tilted_logit(x, y, beta)) - answer_.log_norm;
    }
    // All of the rest has one log mu / pi_S. There is no mass where it would be -inf less -inf.
    const bool no_rest = student_.back() == -INFINITY || log_mu_.back() == -INFINITY;
    rest_ratio_ = no_rest ? -INFINITY : log_mu_.back() - (student_.back() - answer_.log_student);
  }
  answer_.sweeps = 1;  // over the student's row, whatever the outcomes took
  return answer_;
}

// Reads the k tokens into `listed_`, in token order so that their order in memory does not matter. Returns false if
// they are at fault.
bool TopKRow::read_teacher() {
  const TopKTeacher& teacher = *row_.teacher;
  listed_.clear();
  for (int64_t place = 0; place < teacher.k; ++place) {
    const int64_t token = teacher.id(row_.teacher_row, place);
    if (token == -1) continue;
    if (token < 0 || token >= vocab_) return false;
    listed_.push_back({token, teacher.log_prob(row_.teacher_row, place)});
  }
  std::sort(listed_.begin(), listed_.end(), [](const Listed& a, const Listed& b) { return a.token < b.token; });
  const auto same = [](const Listed& a, const Listed& b) { return a.token == b.token; };
  if (std::adjacent_find(listed_.begin(), listed_.end(), same) != listed_.end()) return false;
  mass_ = 0.0;
  for (const Listed& listed : listed_) mass_ += std::exp(listed.log_prob);
  return !mass_at_fault(mass_, static_cast<int64_t>(listed_.size()), vocab_);
}

// Calls body(logits, bfloat16) with the logits of a block, contiguous and padded to a whole block. If they are not in
// memory that way, they are copied. Equal logits always arrive in the same form, so that a row's result does not depend
// on its strides. If `without_listed`, the listed tokens have -inf instead.
template <typename Body>
void TopKRow::with_block(int64_t block, bool without_listed, const Body& body) const {
  const LogitsRow& student = row_.student;
  const int64_t begin = block * kBlock, count = std::min(kBlock, vocab_ - begin);
  const bool bfloat16 = student.raw() && student.dtype == ScalarType::BFloat16;
  const auto [first, last] = listed_in(begin, without_listed ? begin + count : begin);
  if (student.in_place() && student.dtype != ScalarType::Half && count == kBlock && first == last) {
    body(static_cast<const char*>(student.data) + begin * (bfloat16 ? 2 : 4), bfloat16);
    return;
  }
  alignas(64) float copy[kBlock];
  if (bfloat16) {
    uint16_t* const bits = reinterpret_cast<uint16_t*>(copy);
    student.load_bits(begin, count, bits);
    std::fill(bits + count, bits + kBlock, kMinusInfinityBits);
    for (int64_t i = first; i < last; ++i) bits[listed_[i].token - begin] = kMinusInfinityBits;
  } else {
    student.load(begin, count, copy);
    std::fill(copy + count, copy + kBlock, -INFINITY);
    for (int64_t i = first; i < last; ++i) copy[listed_[i].token - begin] = -INFINITY;
  }
  body(copy, bfloat16);
}

// Sums the weights of the tokens that are not listed, and reads the logits of those that are. Returns false if the row
// is at fault.
bool TopKRow::sweep_rest() {
  const float inverse_temperature = static_cast<float>(row_.inverse_temperature);
  for_each_part(spread_, blocks_, [&](int64_t block) {
    with_block(block, true, [&](const void* logits, bool bfloat16) {
      sweeps_.block_weights(logits, bfloat16, inverse_temperature, &weights_[block]);
    });
  });
  bool fault = false;
  double most = -INFINITY;
  for (const BlockWeights& block : weights_) {
    fault = fault || block.fault;
    most = std::max(most, static_cast<double>(block.peak));
  }
  student_.resize(listed_.size() + 1);
  for (size_t i = 0; i < listed_.size(); ++i) {
    row_.student.load(listed_[i].token, 1, 1.0, &student_[i]);
    fault = fault || !(student_[i] < INFINITY);  // NaN too
    most = std::max(most, student_[i]);
  }
  max_student_ = most;
  return !fault && most > -INFINITY;
}

// Sets both models' logarithms of the outcomes, the student's relative to the row's maximum.
void TopKRow::set_outcomes() {
  // 1. The student's.
  const double scale = row_.inverse_temperature;
  rest_peak_ = -INFINITY;
  for (const BlockWeights& block : weights_) rest_peak_ = std::max(rest_peak_, static_cast<double>(block.peak));
  LogSum rest;  // from its own peak: beside a listed token 1e30 above it, its tokens would keep no digits
  for (const BlockWeights& block : weights_) rest.merge({(block.peak - rest_peak_) * scale, block.mass});
  log_rest_ = rest.log();
  student_.back() = rest.empty() ? -INFINITY : (rest_peak_ - max_student_) * scale + log_rest_;
  LogSum all;
  for (size_t i = 0; i < listed_.size(); ++i) student_[i] = (student_[i] - max_student_) * scale;
  for (const double x : student_) all.merge({x, x > -INFINITY ? 1.0 : 0.0});
  // 2. The teacher's, which add up to 1.
  const bool all_listed = static_cast<int64_t>(listed_.size()) == vocab_;
  const double log_rest = log_rest_of(mass_, student_.back() - all.log(), all_listed);
  const double log_total = std::log(mass_ + std::exp(log_rest));
  teacher_.resize(student_.size());
  for (size_t i = 0; i < listed_.size(); ++i) teacher_[i] = listed_[i].log_prob - log_total;
  teacher_.back() = log_rest - log_total;
}

std::pair<int64_t, int64_t> TopKRow::listed_in(int64_t begin, int64_t end) const {
  const auto before = [](const Listed& listed, int64_t token) { return listed.token < token; };
  const auto first = std::lower_bound(listed_.begin(), listed_.end(), begin, before);
  return {first - listed_.begin(), std::lower_bound(first, listed_.end(), end, before) - listed_.begin()};
}

std::vector<double> TopKRow::block_masses(bool residual) const {
  std::vector<double> mass(blocks_);
  for (int64_t block = 0; block < blocks_; ++block) {
    const BlockWeights& rest = weights_[block];
    if (rest.mass == 0.0) continue;
    const double log_mass = log_mu_.back() + log_share_of_rest(rest.peak) + std::log(rest.mass);
    const double of_rest = mass_of(log_mass, rest_ratio_, residual);
    // A subnormal mass counts as none: its tokens' shares could all be 0, and no token would be drawn.
    if (of_rest >= DBL_MIN) mass[block] = of_rest;
  }
  for (size_t i = 0; i < listed_.size(); ++i) mass[listed_[i].token / kBlock] += listed_mass(i, residual);
  return mass;
}

double TopKRow::log_share_of_rest(double logit) const {
  return logit > -INFINITY ? (logit - rest_peak_) * row_.inverse_temperature - log_rest_ : -INFINITY;
}

double TopKRow::listed_mass(int64_t i, bool residual) const {
  return mass_of(log_mu_[i], log_mu_[i] - (student_[i] - answer_.log_student), residual);
}

Draw TopKRow::draw(bool residual, double uniform) const {
  const auto weigh = [&](int64_t begin, int64_t count, double* out) {
    row_.student.load(begin, count, 1.0, out);
    for (int64_t i = 0; i < count; ++i) {
      out[i] = mass_of(log_mu_.back() + log_share_of_rest(out[i]), rest_ratio_, residual);
    }
    const auto [first, last] = listed_in(begin, begin + count);
    for (int64_t i = first; i < last; ++i) out[listed_[i].token - begin] = listed_mass(i, residual);
  };
  const int64_t token = invert_cdf(block_masses(residual), vocab_, uniform, weigh);
  if (token < 0) return {};
  return {token, log_probs_at(token)};
}

Draw TopKRow::sample(double uniform) const {
  if (answer_.status == Status::kFault || !is_uniform(uniform)) return {};
  return draw(false, uniform);
}

Draw TopKRow::sample_residual(double uniform) const {
  if (answer_.status == Status::kFault || !is_uniform(uniform)) return {};
  // If mu is pi_S, or rounding leaves no mass in max(mu - pi_S, 0), the token is drawn from mu.
  const Draw drawn = answer_.status == Status::kStudent ? Draw{} : draw(true, uniform);
  return drawn.token < 0 ? sample(uniform) : drawn;
}

TokenLogProbs TopKRow::log_probs_at(int64_t token) const {
  const auto [first, last] = listed_in(token, token + 1);
  if (first < last) return {student_[first] - answer_.log_student, teacher_[first], log_mu_[first]};
  double logit;
  row_.student.load(token, 1, 1.0, &logit);
  if (logit == -INFINITY) return {-INFINITY, -INFINITY, -INFINITY};
  const double share = log_share_of_rest(logit);
  return {(logit - max_student_) * row_.inverse_temperature - answer_.log_student, teacher_.back() + share,
          log_mu_.back() + share};
}

void TopKRow::write_log_probs(float* out) const {
  if (answer_.status == Status::kFault) {
    std::fill(out, out + vocab_, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  // The rest is written as the student's own log-probabilities, moved by the one ratio. In the frame of the rest's
  // maximum no digits are lost if all of it lies far below the row's.
  SweepFrame frame{};
  frame.max_student = frame.max_teacher = static_cast<float>(rest_peak_);
  frame.inverse_temperature = static_cast<float>(row_.inverse_temperature);
  frame.shift = static_cast<float>(log_rest_ - log_mu_.back());
  for_each_part(spread_, blocks_, [&](int64_t block) {
    const int64_t begin = block * kBlock, count = std::min(kBlock, vocab_ - begin);
    if (rest_ratio_ == -INFINITY) {
      std::fill_n(out + begin, count, -INFINITY);
    } else {
      with_block(block, false, [&](const void* logits, bool bfloat16) {
        sweeps_.log_probs({logits, logits, bfloat16, 1, true}, frame, count, out + begin);
      });
    }
  });
  for (size_t i = 0; i < listed_.size(); ++i) out[listed_[i].token] = static_cast<float>(log_mu_[i]);
}

}  // namespace trb::cpu
