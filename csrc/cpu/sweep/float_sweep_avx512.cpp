// Compiles the float32 sweeps for x86-64 with AVX-512 F, BW, DQ and VL.
#define TRB_LANES 16
#define TRB_TABLE kAvx512Sweeps
#define TRB_ISA "avx512"
#include "float_sweep_simd.h"
