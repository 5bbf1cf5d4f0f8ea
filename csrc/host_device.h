// Defines TRB_HD, which marks a function that runs on the CPU and on the GPU.
#pragma once

#ifdef __CUDACC__
#define TRB_HD __host__ __device__
#else
#define TRB_HD
#endif
