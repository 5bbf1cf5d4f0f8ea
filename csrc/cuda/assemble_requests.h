// The second kernel of verify, for the host. Compiled in assemble_requests.cu.
#pragma once

namespace trb::cuda {

constexpr int kAssemblyThreads = 128;  // four requests

const void* assembly_kernel();  // __global__ void (VerifyArrays, const RowVerdict*)

}  // namespace trb::cuda
