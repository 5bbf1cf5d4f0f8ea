// Runs verify on the CPU.
#include "../operators/verify_operator.h"

#include "row_solver.h"
#include "serve_requests.h"

namespace trb::cpu {
namespace {

void run_verify(const VerifyCall& call) {
  const VerifyArrays& arrays = call.arrays;
  serve_requests<RowSolver>(arrays, [&](int64_t row, double inverse_temperature) {
    return RowPair{logits_row(call.student, arrays.student_row[row]), logits_row(call.teacher, arrays.teacher_row[row]),
                   arrays.vocab, inverse_temperature};
  });
}

}  // namespace
}  // namespace trb::cpu

TRB_LIBRARY_IMPL(CPU, m) { TRB_REGISTER_VERIFY(m, trb::cpu::run_verify); }
