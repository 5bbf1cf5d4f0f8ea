// Runs solve, blend and sample on the CPU.
#include "../operators/row_operators.h"

#include "row_solver.h"
#include "run_rows.h"

namespace trb::cpu {
namespace {

void run(const Call& call) {
  const int64_t vocab = call.student.size(1);
  run_rows<RowSolver>(call, [&](int64_t row) {
    return RowPair{logits_row(call.student, row), logits_row(call.teacher, row), vocab, 1.0 / call.temperature};
  });
}

}  // namespace
}  // namespace trb::cpu

TRB_LIBRARY_IMPL(CPU, m) { TRB_REGISTER_OPERATORS(m, trb::cpu::run); }
