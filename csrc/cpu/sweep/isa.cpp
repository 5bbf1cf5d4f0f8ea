// This file is compiled into the operators, which use the instruction set, and into trbext._C, which reports it.
#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace trb::cpu {

bool runs(const char* isa) {
  if (std::strcmp(isa, "generic") == 0) return true;
#ifdef TRB_X86
  if (std::strcmp(isa, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (std::strcmp(isa, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return false;
}

const char* choose_isa() {
  const char* forced = std::getenv("TRB_CPU_ISA");
  if (forced != nullptr && *forced != '\0') return runs(forced) ? forced : nullptr;
  return runs("avx512") ? "avx512" : runs("avx2") ? "avx2" : "generic";
}

}  // namespace trb::cpu
