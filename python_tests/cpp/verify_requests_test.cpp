// Checks which rows a request has, and the outputs that are made from its rows' verdicts.
#include "operators/verify_requests.h"

#include <cmath>
#include <cstdio>
#include <vector>

using namespace trb;

static int failures = 0;

#define EXPECT(condition)                                             \
  do {                                                                \
    if (!(condition)) {                                               \
      std::printf("%s:%d: not %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                     \
    }                                                                 \
  } while (false)

namespace {

struct Outputs {  // of two requests, six rows, width 3
  std::vector<int64_t> tokens = std::vector<int64_t>(6, 99);
  std::vector<int32_t> int32_tokens = std::vector<int32_t>(6, 99);
  std::vector<int32_t> emitted{99, 99}, accepted{99, 99};
  std::vector<float> beta = std::vector<float>(6, 99.0f), kl = beta, log_probs = std::vector<float>(18, 99.0f);
  std::vector<float> epsilon{0.1f, 0.1f}, temperature{1.0f, 1.0f};

  VerifyArrays arrays(bool int64 = true) {
    VerifyArrays all{};
    all.rows = 6, all.requests = 2, all.width = 3, all.vocab = 10;
    all.epsilon = {epsilon.data(), 1};
    all.temperature = {temperature.data(), 1};
    all.tokens = int64 ? static_cast<void*>(tokens.data()) : int32_tokens.data();
    all.int64_tokens = int64;
    all.emitted = emitted.data(), all.accepted = accepted.data();
    all.beta = beta.data(), all.kl = kl.data(), all.log_probs = log_probs.data();
    return all;
  }
};

RowVerdict verdict_of(Verdict verdict, int64_t token) { return {token, verdict, -1.0f, -2.0f, -1.5f, 0.5f, 0.01f}; }

void a_replaced_draft_ends_the_request() {
  Outputs out;
  int asked = 0;
  assemble_request(out.arrays(), 1, {2, 3, false}, [&](int64_t row) {
    ++asked;
    return verdict_of(row == 3 ? Verdict::kDrawn : Verdict::kAccepted, row);
  });
  EXPECT(asked == 2);
  EXPECT(out.emitted[1] == 2 && out.accepted[1] == 1);
  EXPECT(out.tokens[3] == 2 && out.tokens[4] == 3 && out.tokens[5] == -1);
  EXPECT(out.beta[2] == 0.5f && out.beta[3] == 0.5f && std::isnan(out.beta[4]) && std::isnan(out.kl[4]));
  EXPECT(out.log_probs[14] == -1.5f && std::isnan(out.log_probs[15]));
  EXPECT(out.tokens[0] == 99 && out.emitted[0] == 99 && out.beta[1] == 99.0f && out.beta[5] == 99.0f);
}

void a_fault_keeps_the_tokens_before_it() {
  Outputs out;
  assemble_request(out.arrays(false), 0, {0, 3, false},
                   [](int64_t row) { return verdict_of(row == 1 ? Verdict::kFault : Verdict::kAccepted, row + 5); });
  EXPECT(out.emitted[0] == -1 && out.accepted[0] == 1);
  EXPECT(out.int32_tokens[0] == 5 && out.int32_tokens[1] == -1 && out.int32_tokens[2] == -1);
  EXPECT(out.beta[0] == 0.5f && std::isnan(out.beta[1]) && std::isnan(out.beta[2]));
  EXPECT(out.tokens[0] == 99);
}

void a_request_at_fault_asks_for_no_verdict() {
  const auto never = [](int64_t) {
    EXPECT(false);
    return RowVerdict{};
  };
  for (const float epsilon : {-1e-9f, NAN, 0.1f}) {
    Outputs out;
    out.epsilon[0] = epsilon;
    const int64_t rows = epsilon == 0.1f ? 4 : 2;  // of the sound one, more than the width
    assemble_request(out.arrays(), 0, {0, rows, false}, never);
    EXPECT(out.emitted[0] == -1 && out.accepted[0] == 0 && out.tokens[0] == -1 && std::isnan(out.beta[1]));
    assemble_request(out.arrays(), 0, {0, 0, false}, never);
    EXPECT(out.emitted[0] == 0 && out.accepted[0] == 0);
    assemble_request(out.arrays(), 0, {0, 0, true}, never);
    EXPECT(out.emitted[0] == -1 && out.accepted[0] == 0);
  }
}

void offsets_out_of_order_take_no_other_request_s_rows() {
  const std::vector<int64_t> offsets{0, 3, 1, 4, 4, 9, 5, 6, -1};
  const std::vector<bool> fault{false, true, true, false, true, true, false, true};
  const std::vector<int64_t> counts{3, 0, 0, 0, 0, 0, 1, 0};
  int64_t reached = 0;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const RequestRows rows = rows_between(offsets[i], offsets[i + 1], 6, &reached);
    EXPECT(rows.fault == fault[i] && rows.count == counts[i]);
  }
}

void a_draft_is_accepted_strictly_below_the_ratio() {
  EXPECT(is_accepted(0.0, -700.0, -1.0) && !is_accepted(0.0, -INFINITY, -1.0) &&
         !is_accepted(0.0, -INFINITY, -INFINITY));
  EXPECT(is_accepted(1.0 - 0x1p-53, -30.0, -30.0) && !is_accepted(0.5, std::log(0.5), 0.0));
  EXPECT(!is_uniform(1.0) && !is_uniform(NAN) && !is_uniform(-1e-300) && is_uniform(0.0));
}

}  // namespace

int main() {
  a_replaced_draft_ends_the_request();
  a_fault_keeps_the_tokens_before_it();
  a_request_at_fault_asks_for_no_verdict();
  offsets_out_of_order_take_no_other_request_s_rows();
  a_draft_is_accepted_strictly_below_the_ratio();
  return failures != 0;
}
