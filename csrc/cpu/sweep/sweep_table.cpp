#include "sweep_table.h"

#include <cstdlib>
#include <cstring>

#include "../../torch_compat.h"
#include "isa.h"

namespace trb::cpu {
namespace {

const SweepTable* choose_sweeps() {
  const char* isa = choose_isa();
  if (isa == nullptr) return nullptr;
#ifdef TRB_X86
  if (std::strcmp(isa, "avx512") == 0) return &kAvx512Sweeps;
  if (std::strcmp(isa, "avx2") == 0) return &kAvx2Sweeps;
#endif
  return &kGenericSweeps;
}

}  // namespace

const SweepTable& sweep_table() {
  static const SweepTable* const sweeps = choose_sweeps();
  check(sweeps != nullptr, "trb: TRB_CPU_ISA must be generic, avx2 or avx512, and run on this machine, got '",
        std::getenv("TRB_CPU_ISA"), "'");
  return *sweeps;
}

}  // namespace trb::cpu
