// Runs solve, blend, sample and verify on the CPU for a teacher of which k tokens per row are known.
#include "../operators/top_k_operators.h"

#include "../operators/verify_top_k_operator.h"
#include "run_rows.h"
#include "serve_requests.h"
#include "top_k_row.h"

namespace trb::cpu {
namespace {

void run(const TopKCall& call) {
  const int64_t vocab = call.student.size(1);
  const TopKTeacher teacher = top_k_teacher(call.ids, call.teacher_log_probs);
  run_rows<TopKRow>(call, [&](int64_t row) {
    return TopKPair{logits_row(call.student, row), &teacher, row, vocab, 1.0 / call.temperature};
  });
}

void run_verify(const VerifyTopKCall& call) {
  const VerifyArrays& arrays = call.arrays;
  const TopKTeacher teacher = top_k_teacher(call.ids, call.teacher_log_probs);
  serve_requests<TopKRow>(arrays, [&](int64_t row, double inverse_temperature) {
    return TopKPair{logits_row(call.student, arrays.student_row[row]), &teacher, arrays.teacher_row[row], arrays.vocab,
                    inverse_temperature};
  });
}

}  // namespace
}  // namespace trb::cpu

TRB_LIBRARY_IMPL(CPU, m) {
  TRB_REGISTER_TOP_K_OPERATORS(m, trb::cpu::run);
  TRB_REGISTER_VERIFY_TOP_K(m, trb::cpu::run_verify);
}
