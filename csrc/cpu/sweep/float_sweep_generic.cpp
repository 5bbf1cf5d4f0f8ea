// Compiles the float32 sweeps for any machine (128-bit vectors: SSE2, NEON).
#define TRB_LANES 4
#define TRB_TABLE kGenericSweeps
#define TRB_ISA "generic"
#include "float_sweep_simd.h"
