// Defines the speculative sampling of mu that every device shares for trb::verify, once mu is known for a row.
//
// A draft x ~ pi_S is accepted if u pi_S(x) < mu(x). The first draft that is rejected is replaced by a token drawn from
// max(mu - pi_S, 0). The rows after it are dropped, because their prefixes hold the rejected draft. A row without a
// draft draws a token from mu. Each token therefore has the distribution min(pi_S, mu) + max(mu - pi_S, 0) = mu
// (Leviathan et al., arXiv 2211.17192).
//
// A device may judge a request's rows in order and stop at the first rejection, or judge all rows at once and keep the
// RowVerdicts: assemble_request makes the same outputs from either.
#pragma once

#include <cmath>
#include <cstdint>

#include "../host_device.h"

namespace trb {

enum class StudentKind : int32_t {
  kLogits,         // raw logits, which the operator divides by the temperature
  kProbabilities,  // at the temperature; 0 for a token that the student never draws
  kScaledLogits,   // divided by the temperature already
};

// Element i of an int32 or int64 tensor [N], or i itself if there is no tensor.
struct Indices {
  const void* data;
  int64_t stride;  // elements
  bool is_int64;   // else int32

  TRB_HD int64_t operator[](int64_t i) const {
    if (data == nullptr) return i;
    return is_int64 ? static_cast<const int64_t*>(data)[i * stride] : static_cast<const int32_t*>(data)[i * stride];
  }
};

template <typename T>
struct Column {  // a tensor [N]
  const T* data;
  int64_t stride;  // elements
  TRB_HD T operator[](int64_t i) const { return data[i * stride]; }
};

// A call of verify without its logits, as plain data that a kernel can be launched with. Outputs share no memory with
// any other tensor.
struct VerifyArrays {
  int64_t rows;      // N
  int64_t requests;  // B
  int64_t width;
  int64_t vocab;         // columns of the logits that are used
  int64_t student_rows;  // R_S, the rows of the student's logits
  int64_t teacher_rows;  // R_T
  StudentKind student_kind;
  Indices draft_tokens;           // [N], -1: none
  Indices offsets;                // [B + 1]
  Indices student_row;            // [N], or none: row i of the logits
  Indices teacher_row;            // [N]
  Column<float> epsilon;          // [B] nats
  Column<float> temperature;      // [B]
  Column<double> accept_uniform;  // [N]
  Column<double> draw_uniform;    // [N]
  void* tokens;                   // [B, width] contiguous, as all outputs are
  bool int64_tokens;              // else int32
  int32_t* emitted;               // [B]
  int32_t* accepted;              // [B]
  float* beta;                    // [N], as kl. The device fills rows that belong to no request with NaN
  float* kl;                      // [N]
  float* log_probs;               // [B, width, 3]: student, teacher, behavior; null if not wanted
};

enum class Verdict : int32_t { kAccepted, kDrawn, kFault };

struct RowVerdict {
  int64_t token = -1;  // the draft, or the token drawn
  Verdict verdict = Verdict::kFault;
  float student_log_prob = NAN, teacher_log_prob = NAN, log_prob = NAN;
  float beta = NAN, kl = NAN;
};

struct RequestRows {
  int64_t begin, count;
  bool fault;  // of the request's offsets; it then has no rows
};

// The rows between two offsets. `reached` is the largest end among the requests before that lies within the rows, 0 for
// the first request. A request that begins before `reached` would share rows with another or be out of order, so it is
// at fault. `reached` is a maximum so that a device can find it for each request independently. If all offsets are in
// order, it equals the request's begin.
TRB_HD inline RequestRows rows_between(int64_t begin, int64_t end, int64_t rows, int64_t* reached) {
  const bool fault = begin < *reached || end < begin || end > rows;
  if (end > *reached && end <= rows) *reached = end;
  return {fault ? 0 : begin, fault ? 0 : end - begin, fault};
}

// Outside these limits log-probabilities would keep no digits: a difference of logits would count for millions of nats,
// or for nothing.
constexpr float kLeastTemperature = 1e-6f, kLargestTemperature = 1e6f;

TRB_HD inline bool is_temperature(double t) { return t >= kLeastTemperature && t <= kLargestTemperature; }

// Whether none of the request's rows can be judged. The arguments of an empty request are not looked at.
TRB_HD inline bool request_at_fault(const VerifyArrays& arrays, int64_t request, const RequestRows& rows) {
  if (rows.count == 0) return rows.fault;
  return rows.count > arrays.width || !(arrays.epsilon[request] >= 0.0f) ||
         !is_temperature(arrays.temperature[request]);
}

// Whether the row's indices name existing rows of logits and its draft names a token of the vocabulary, or none.
TRB_HD inline bool row_in_range(const VerifyArrays& arrays, int64_t row) {
  const int64_t student = arrays.student_row[row], teacher = arrays.teacher_row[row], draft = arrays.draft_tokens[row];
  return student >= 0 && student < arrays.student_rows && teacher >= 0 && teacher < arrays.teacher_rows &&
         draft >= -1 && draft < arrays.vocab;
}

TRB_HD inline bool is_uniform(double u) { return u >= 0.0 && u < 1.0; }

// Whether a draft is accepted, from its log mu and log pi_S. At beta = 0 the two are equal and the draft always is. A
// token outside the support of mu never is, whatever pi_S is.
TRB_HD inline bool is_accepted(double uniform, double log_mu, double log_student) {
  return log_mu > -INFINITY && uniform < ::exp(log_mu - log_student);
}

// Writes all outputs of a request. Calls `verdict(row)` for its rows in order, until one is not kAccepted.
template <typename VerdictOf>
TRB_HD void assemble_request(const VerifyArrays& arrays, int64_t request, const RequestRows& rows,
                             const VerdictOf& verdict) {
  // 1. Two functions write one token and its log-probabilities in the row of the request.
  const int64_t first = request * arrays.width;
  const auto set_token = [&](int64_t place, int64_t token) {
    if (arrays.int64_tokens) {
      static_cast<int64_t*>(arrays.tokens)[first + place] = token;
    } else {
      static_cast<int32_t*>(arrays.tokens)[first + place] = static_cast<int32_t>(token);
    }
  };
  const auto set_log_probs = [&](int64_t place, float student, float teacher, float behavior) {
    if (arrays.log_probs == nullptr) return;
    float* out = arrays.log_probs + 3 * (first + place);
    out[0] = student, out[1] = teacher, out[2] = behavior;
  };
  // 2. Tokens are emitted up to the first row that is not accepted. Rows after it get NaN.
  bool fault = request_at_fault(arrays, request, rows), stopped = fault;
  int32_t place = 0, accepted = 0;
  for (int64_t row = rows.begin; row < rows.begin + rows.count; ++row) {
    RowVerdict of_row;
    if (!stopped) {
      of_row = verdict(row);
      fault = of_row.verdict == Verdict::kFault;
      stopped = of_row.verdict != Verdict::kAccepted;
      if (!fault) {
        set_token(place, of_row.token);
        set_log_probs(place, of_row.student_log_prob, of_row.teacher_log_prob, of_row.log_prob);
        ++place;
        accepted += !stopped;
      }
    }
    arrays.beta[row] = fault ? NAN : of_row.beta;
    arrays.kl[row] = fault ? NAN : of_row.kl;
  }
  // 3. The rest of the request's row is padding.
  arrays.emitted[request] = fault ? -1 : place;
  arrays.accepted[request] = accepted;
  for (int64_t rest = place; rest < arrays.width; ++rest) {
    set_token(rest, -1);
    set_log_probs(rest, NAN, NAN, NAN);
  }
}

}  // namespace trb
