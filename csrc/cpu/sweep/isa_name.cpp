// Defines trb_cpu_isa, which names the instruction set of the CPU operators to a Python without trbext._C
// (trbext/_build_file.py).
#include "isa.h"

extern "C" __attribute__((visibility("default"))) const char* trb_cpu_isa() {
  const char* isa = trb::cpu::choose_isa();
  return isa != nullptr ? isa : "none: TRB_CPU_ISA names one that cannot run here";
}
