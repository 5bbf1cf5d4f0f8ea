// Holds the outcomes of a top-k teacher, its k tokens and the rest of the vocabulary, as a row that the sweeps in
// double precision read like a row of logits.
#pragma once

#include <algorithm>
#include <cstdint>

namespace trb::cpu {

struct LogProbs {
  const double* data;

  void load(int64_t begin, int64_t count, double scale, double* out) const {
    for (int64_t i = 0; i < count; ++i) out[i] = data[begin + i] * scale;
  }
};

struct OutcomePair {
  LogProbs student, teacher;  // nats, up to a constant; at most 0, -inf where the model has no mass
  int64_t vocab;              // outcomes
  double inverse_temperature;
};

}  // namespace trb::cpu
