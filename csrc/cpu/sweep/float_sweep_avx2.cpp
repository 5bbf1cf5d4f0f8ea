// Compiles the float32 sweeps for x86-64 with AVX2 and FMA.
#define TRB_LANES 8
#define TRB_TABLE kAvx2Sweeps
#define TRB_ISA "avx2"
#include "float_sweep_simd.h"
