// Defines a top-k teacher as plain data that a kernel can be launched with, and the rules on its numbers that every
// device shares.
//
// The k tokens and the rest of the vocabulary are k + 1 outcomes. The rest of the teacher's mass is spread as the
// student's, so that D is one number over it, and KL(mu || pi_S) over the outcomes is the KL over the vocabulary.
#pragma once

#include <cmath>
#include <cstdint>

#include "../host_device.h"

namespace trb {

// A sum of probabilities above 1 by more than this is no rounding.
constexpr double kLargestExcessOfMass = 1e-3;
// What is left of 1 beside the sum is not known to more than this: the rounding of float32 logarithms.
constexpr double kRoundingOfMass = 1e-6;

struct TopKTeacher {  // [R, k], strides in elements
  const void* ids;
  int64_t id_row_stride, id_stride;
  const float* log_probs;
  int64_t log_prob_row_stride, log_prob_stride;
  int64_t k;
  bool int64_ids;  // else int32

  TRB_HD int64_t id(int64_t row, int64_t place) const {
    const int64_t at = row * id_row_stride + place * id_stride;
    return int64_ids ? static_cast<const int64_t*>(ids)[at] : static_cast<const int32_t*>(ids)[at];
  }
  TRB_HD float log_prob(int64_t row, int64_t place) const {
    return log_probs[row * log_prob_row_stride + place * log_prob_stride];
  }
};

// Whether the sum of the listed probabilities is a fault: NaN, more than 1, or nothing although every token is listed.
TRB_HD inline bool mass_at_fault(double mass, int64_t listed, int64_t vocab) {
  return !(mass <= 1.0 + kLargestExcessOfMass) || (mass == 0.0 && listed == vocab);
}

// The logarithm of the teacher's mass on the tokens that are not listed, from the sum of the listed ones and the
// logarithm of the student's mass there, of which e^ may have lost digits or all. If every token is listed, the sum is
// all of its mass, and differs from 1 by rounding.
//
// The float32 logarithms of a teacher that is sure of its k tokens add up to 1, whatever its rest is. A rest that is
// lost in their rounding is taken to be the student's, as far as the rounding allows, and not 0: at 0 mu could not have
// any token of the rest, and the budget would then allow nothing but the student.
TRB_HD inline double log_rest_of(double mass, double log_student_rest, bool all_listed) {
  if (all_listed) return -INFINITY;
  const double most = ::log(1.0 - mass >= kRoundingOfMass ? 1.0 - mass : kRoundingOfMass);
  return 1.0 - mass >= kRoundingOfMass || log_student_rest > most ? most : log_student_rest;
}

}  // namespace trb
