// Gives the float32 sweeps of the instruction set that isa.h chooses.
#pragma once

#include "float_sweep.h"

namespace trb::cpu {

// Throws if TRB_CPU_ISA names an instruction set that this machine does not run.
const SweepTable& sweep_table();

}  // namespace trb::cpu
