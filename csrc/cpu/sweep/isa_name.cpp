// trb_cpu_isa: the instruction set that the CPU operators use, for a Python without trbext._C (trbext/_build_file.py).
#include "isa.h"

extern "C" __attribute__((visibility("default"))) const char* trb_cpu_isa() {
  const char* isa = trb::cpu::choose_isa();
  return isa != nullptr ? isa : "none: TRB_CPU_ISA names one that cannot run here";
}
