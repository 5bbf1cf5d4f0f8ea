// Holds the answer of a solved row: beta, and what drawing a token and writing log mu need.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "../solver/solver.h"
#include "../torch_compat.h"
#include "float_environment.h"
#include "logits.h"

namespace trb::cpu {

// log mu(i) = (1 - beta) x_i + beta y_i - log_norm on the support of mu, with x = (a - origin_student) / T and
// y = (b - origin_teacher) / T. The origin is at the row's maxima or, in double precision, at a token that decides
// (double_row.h). log pi_S(i) = (a_i - max_student) / T - log_student, and likewise the teacher's.
struct RowAnswer {
  Status status = Status::kFault;
  float beta = 0.0f;
  double kl = 0.0;
  int sweeps = 0;
  float max_student = 0.0f, max_teacher = 0.0f;
  double log_student = 0.0, log_teacher = 0.0;
  double origin_student = 0.0, origin_teacher = 0.0;
  double log_norm = 0.0;
  std::vector<double> mass;  // of mu per block, all in the same unit
};

struct TokenLogProbs {  // nats
  double student = NAN, teacher = NAN, behavior = NAN;
};

struct Draw {
  int64_t token = -1;
  TokenLogProbs log_probs;
};

// Calls body(0) .. body(count - 1), in order on the calling thread or, if `spread`, on all threads. Each part of a row
// writes its own sums, which are added in order afterwards, so that the result is bitwise the same either way.
template <typename Body>
void for_each_part(bool spread, int64_t count, const Body& body) {
  const auto range = [&](int64_t begin, int64_t end) {
    const DefaultFloats floats;
    for (int64_t part = begin; part < end; ++part) body(part);
  };
  if (spread) {
    parallel_for(0, count, 1, range);
  } else {
    for (int64_t part = 0; part < count; ++part) body(part);
  }
}

}  // namespace trb::cpu
