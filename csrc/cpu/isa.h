#pragma once

namespace trb::cpu {

// Whether this machine runs the sweeps compiled for "generic", "avx2" or "avx512".
bool runs(const char* isa);

// The fastest of them, or the one that the environment variable TRB_CPU_ISA names; null if that one cannot run here.
const char* choose_isa();

}  // namespace trb::cpu
