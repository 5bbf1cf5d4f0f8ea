// Declares the kernel over rows whose teacher is k tokens, and its arguments.
#pragma once

#include "../operators/top_k_teacher.h"
#include "kernel_args.h"

namespace trb::cuda {

constexpr int kTopKThreads = 512;
// Per token block the kernel keeps 16 bytes in dynamic shared memory, which then has at most 32 KB.
constexpr int kTopKBytesPerBlock = 16;
constexpr int64_t kLargestTopKVocab = int64_t{1} << 21;

struct TopKArgs {
  KernelArgs call;  // without the teacher's logits
  TopKTeacher teacher;
};

const void* top_k_kernel();  // __global__ void (TopKArgs)

}  // namespace trb::cuda
