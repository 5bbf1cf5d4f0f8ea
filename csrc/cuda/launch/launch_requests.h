// Launches the second kernel of verify for any kind of teacher. Between the two are the verdicts of the rows, 32 bytes
// each.
#pragma once

#include "../../operators/verify_requests.h"
#include "../../torch_compat.h"
#include "../kernel_args.h"

namespace trb::cuda {

Tensor new_verdicts(const Tensor& student, int64_t rows);

// The arguments of the kernel over rows, without the teacher. `verdicts` must outlive them.
KernelArgs kernel_args_of(const char* op, const Tensor& student, const VerifyArrays& arrays, const Tensor& verdicts);

void assemble_requests(const char* op, int device, const VerifyArrays& arrays, const RowVerdict* verdicts);

}  // namespace trb::cuda
