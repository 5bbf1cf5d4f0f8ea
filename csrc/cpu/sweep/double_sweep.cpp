// Implements the sweeps in double precision, in portable C++. Per token they need 16 bytes of cache and one or two
// exponentials of about 5 ns, which bound the speed. One pass finds the peak and one sums the moments, both without a
// division.
//
// Reduction order: the tokens of a block are added one after another, in token order. Drawing a token repeats the same
// additions, so that a block's running sum ends exactly at the mass that was stored for it.
#include "double_sweep.h"

#include <algorithm>
#include <cmath>

namespace trb::cpu {
namespace {

struct Tokens {  // both models' logits of one block, from the origin
  double x[kBlock];
  double y[kBlock];
  int64_t count;

  template <typename Row>
  Tokens(const Row& row, const Origin& origin, int64_t block) {
    const int64_t begin = block * kBlock;
    count = std::min(kBlock, row.vocab - begin);
    row.student.load(begin, count, 1.0, x);
    row.teacher.load(begin, count, 1.0, y);
    for (int64_t i = 0; i < count; ++i) {
      x[i] = (x[i] - origin.student) * row.inverse_temperature;
      y[i] = (y[i] - origin.teacher) * row.inverse_temperature;
    }
  }
};

LogSum log_sum(const double* t, int64_t count) {
  LogSum sum;
  if (count == 0) return sum;
  sum.peak = *std::max_element(t, t + count);
  for (int64_t i = 0; i < count; ++i) sum.mass += std::exp(t[i] - sum.peak);
  return sum;
}

// The moments of d under weights exp(t). t and d are finite.
Tilt moments(const double* t, const double* d, const double* x, int64_t count) {
  Tilt tilt;
  if (count == 0) return tilt;
  double w[kBlock];
  tilt.weight.peak = *std::max_element(t, t + count);
  double mass = 0.0, first = 0.0, below = 0.0, at_x = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    w[i] = std::exp(t[i] - tilt.weight.peak);
    mass += w[i];
    first += w[i] * d[i];
    below += w[i] * (t[i] - tilt.weight.peak);
    at_x += w[i] * x[i];
  }
  tilt.weight.mass = mass;
  tilt.mean = first / mass;
  tilt.below = below / mass;
  tilt.x = at_x / mass;
  double second = 0.0, third = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const double c = d[i] - tilt.mean, wc2 = w[i] * c * c;
    second += wc2;
    third += wc2 * c;
  }
  tilt.m2 = second / mass;
  tilt.m3 = third / mass;
  return tilt;
}

}  // namespace

template <typename Row>
WeighedToken likeliest_token(const Row& row, const Origin& origin, int64_t block, double beta) {
  const Tokens tokens(row, origin, block);
  WeighedToken likeliest;
  int64_t found = -1;
  for (int64_t i = 0; i < tokens.count; ++i) {
    const double x = tokens.x[i], y = tokens.y[i];
    if (!(x > -INFINITY && y > -INFINITY)) continue;
    const double t = tilted_logit(x, y, beta);
    if (found >= 0 && !(t > likeliest.t)) continue;
    likeliest.t = t;
    found = i;
  }
  if (found < 0) return likeliest;
  row.student.load(block * kBlock + found, 1, 1.0, &likeliest.logits.student);
  row.teacher.load(block * kBlock + found, 1, 1.0, &likeliest.logits.teacher);
  return likeliest;
}

template <typename Row>
Ends sweep_ends(const Row& row, const Origin& origin, int64_t block) {
  const Tokens tokens(row, origin, block);
  Ends ends;
  double x[kBlock], y[kBlock], d[kBlock];  // the common support, packed
  int64_t common = 0, in_student = 0, in_teacher = 0;
  for (int64_t i = 0; i < tokens.count; ++i) {
    const double a = tokens.x[i], b = tokens.y[i];
    // !(a < inf) is true for NaN and for +inf. Neither may be hidden by an -inf of the other model.
    ends.fault = ends.fault || !(a < INFINITY) || !(b < INFINITY);
    const bool student_has = a > -INFINITY, teacher_has = b > -INFINITY;
    in_student += student_has;
    in_teacher += teacher_has;
    if (student_has && teacher_has) {
      x[common] = a;
      y[common] = b;
      d[common] = b - a;
      ends.min_d = std::min(ends.min_d, b - a);
      ends.max_d = std::max(ends.max_d, b - a);
      ++common;
    }
  }
  if (ends.fault) return ends;
  ends.zero = moments(x, d, x, common);
  ends.one = moments(y, d, x, common);
  // If a model masks nothing that the other has, its sum was taken above: log_sum would only add zeros to it, in the
  // same order.
  ends.student = in_student == common ? ends.zero.weight : log_sum(tokens.x, tokens.count);
  ends.teacher = in_teacher == common ? ends.one.weight : log_sum(tokens.y, tokens.count);
  return ends;
}

template <typename Row>
Tilt sweep_tilt(const Row& row, const Origin& origin, int64_t block, double beta) {
  const Tokens tokens(row, origin, block);
  double t[kBlock], d[kBlock], xs[kBlock];
  int64_t common = 0;
  for (int64_t i = 0; i < tokens.count; ++i) {
    const double x = tokens.x[i], y = tokens.y[i];
    if (!(x > -INFINITY && y > -INFINITY)) continue;
    t[common] = tilted_logit(x, y, beta);
    d[common] = y - x;
    xs[common] = x;
    ++common;
  }
  return moments(t, d, xs, common);
}

template WeighedToken likeliest_token(const RowPair&, const Origin&, int64_t, double);
template Ends sweep_ends(const RowPair&, const Origin&, int64_t);
template Tilt sweep_tilt(const RowPair&, const Origin&, int64_t, double);
template WeighedToken likeliest_token(const OutcomePair&, const Origin&, int64_t, double);
template Ends sweep_ends(const OutcomePair&, const Origin&, int64_t);
template Tilt sweep_tilt(const OutcomePair&, const Origin&, int64_t, double);

}  // namespace trb::cpu
