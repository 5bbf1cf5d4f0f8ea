// Chooses the instruction set of the float32 sweeps.
#pragma once

namespace trb::cpu {

// Whether this machine runs the sweeps compiled for "generic", "avx2" or "avx512".
bool runs(const char* isa);

// The fastest of them that this machine runs, or the one that the environment variable TRB_CPU_ISA names. Null if this
// machine cannot run the one that is named.
const char* choose_isa();

}  // namespace trb::cpu
