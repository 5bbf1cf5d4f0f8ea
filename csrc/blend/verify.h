// Speculative sampling of mu, request by request: what every device shares once the policy of a row is known.
//
// A draft x ~ pi_S stands if u pi_S(x) < mu(x). The first that does not is replaced by a draw from max(mu - pi_S, 0),
// and the rows after it do not count, for their prefix was another. A row without a draft draws from mu. So each
// token's law is min(pi_S, mu) + max(mu - pi_S, 0) = mu (Leviathan et al., arXiv 2211.17192).
//
// A device may go through a request's rows in order and stop, or judge all rows at once and keep the RowVerdicts:
// assemble_request makes the same outputs of either.
#pragma once

#include "row.h"

namespace trb {

enum class StudentKind : int32_t {
  kLogits,         // divided by the temperature here
  kProbabilities,  // at the temperature; 0 where the student never draws a token
  kScaledLogits,   // divided by the temperature already
};

// Element i of an int32 or int64 tensor [N], or i itself where there is none.
struct Indices {
  const void* data;
  int64_t stride;  // elements
  bool wide;       // int64

  TRB_HD int64_t operator[](int64_t i) const {
    if (data == nullptr) return i;
    return wide ? static_cast<const int64_t*>(data)[i * stride] : static_cast<const int32_t*>(data)[i * stride];
  }
};

template <typename T>
struct Column {  // a tensor [N]
  const T* data;
  int64_t stride;  // elements
  TRB_HD T operator[](int64_t i) const { return data[i * stride]; }
};

// All but the logits of a call, as plain data: a kernel can be launched with it. Outputs overlap nothing.
struct VerifyArrays {
  int64_t rows;      // N
  int64_t requests;  // B
  int64_t width;
  int64_t vocab;         // columns of the logits that count
  int64_t student_rows;  // R_S, R_T: how many rows of logits there are
  int64_t teacher_rows;
  StudentKind student_kind;
  Indices draft_tokens;           // [N], -1: none
  Indices offsets;                // [B + 1]
  Indices student_row;            // [N], and none: row i
  Indices teacher_row;            // [N]
  Column<float> epsilon;          // [B] nats
  Column<float> temperature;      // [B]
  Column<double> accept_uniform;  // [N]
  Column<double> draw_uniform;    // [N]
  void* tokens;                   // [B, width] contiguous, as all outputs are
  bool wide_tokens;               // int64, else int32
  int32_t* emitted;               // [B]
  int32_t* accepted;              // [B]
  float* beta;                    // [N]. Rows of no request are the device's to fill with NaN
  float* kl;                      // [N]
  float* log_probs;               // [B, width, 3]: student, teacher, behavior; null where not wanted
};

enum class Verdict : int32_t { kAccepted, kDrawn, kFault };

struct RowVerdict {
  int64_t token = -1;  // the draft, or the one drawn
  Verdict verdict = Verdict::kFault;
  float student_log_prob = NAN, teacher_log_prob = NAN, log_prob = NAN;
  float beta = NAN, kl = NAN;
};

struct RequestRows {
  int64_t begin, count;
  bool fault;  // of its offsets: it has no rows then
};

// The rows between two offsets. `reached` is the largest end so far that lies within the rows, 0 for the first request:
// a request that begins before it would share rows with another, or come out of order. A maximum, so that a device may
// work it out for each request by itself. Where all offsets are in order it is the request's own begin.
TRB_HD inline RequestRows rows_between(int64_t begin, int64_t end, int64_t rows, int64_t* reached) {
  const bool fault = begin < *reached || end < begin || end > rows;
  if (end > *reached && end <= rows) *reached = end;
  return {fault ? 0 : begin, fault ? 0 : end - begin, fault};
}

// Beyond, log-probabilities would have no digits left: differences of logits count by the million nats, or for nothing.
constexpr float kLeastTemperature = 1e-6f, kLargestTemperature = 1e6f;

TRB_HD inline bool is_temperature(double t) { return t >= kLeastTemperature && t <= kLargestTemperature; }

// Whether none of the request's rows can be judged; an empty request asks nothing.
TRB_HD inline bool request_at_fault(const VerifyArrays& arrays, int64_t request, const RequestRows& rows) {
  if (rows.count == 0) return rows.fault;
  return rows.count > arrays.width || !(arrays.epsilon[request] >= 0.0f) ||
         !is_temperature(arrays.temperature[request]);
}

// Whether the row points at logits that are there, and its draft at a token.
TRB_HD inline bool row_in_range(const VerifyArrays& arrays, int64_t row) {
  const int64_t student = arrays.student_row[row], teacher = arrays.teacher_row[row], draft = arrays.draft_tokens[row];
  return student >= 0 && student < arrays.student_rows && teacher >= 0 && teacher < arrays.teacher_rows &&
         draft >= -1 && draft < arrays.vocab;
}

TRB_HD inline bool is_uniform(double u) { return u >= 0.0 && u < 1.0; }

// Whether a draft stands, from log mu and log pi_S of it. With beta = 0 both are the same number and it always does;
// a token outside the support of mu never does, whatever pi_S is.
TRB_HD inline bool stands(double uniform, double log_mu, double log_student) {
  return log_mu > -INFINITY && uniform < ::exp(log_mu - log_student);
}

// Writes all outputs of a request. `verdict(row)` is asked for its rows in order, until one is not kAccepted.
template <typename VerdictOf>
TRB_HD void assemble_request(const VerifyArrays& arrays, int64_t request, const RequestRows& rows,
                             const VerdictOf& verdict) {
  const int64_t first = request * arrays.width;
  const auto set_token = [&](int64_t place, int64_t token) {
    if (arrays.wide_tokens) {
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
  arrays.emitted[request] = fault ? -1 : place;
  arrays.accepted[request] = accepted;
  for (int64_t rest = place; rest < arrays.width; ++rest) {
    set_token(rest, -1);
    set_log_probs(rest, NAN, NAN, NAN);
  }
}

}  // namespace trb
