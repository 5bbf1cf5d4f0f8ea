// pybind11 module trbext._C: facts about this build. No torch headers and no torch libraries, so it stays importable,
// and can say what is wrong, when torch is absent or odd.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of trbext; the operators are in libtrb_ops.so beside this module.";
  m.attr("version") = TRB_VERSION;
  m.attr("torch_built_against") = TRB_TORCH_VERSION;
  m.attr("compiler") = TRB_COMPILER;
  m.attr("cuda_compiled") = static_cast<bool>(TRB_WITH_CUDA);
  m.attr("cuda_archs") = TRB_CUDA_ARCHS;
  m.attr("cpu_isa") = "generic";  // the sweeps are portable C++; nothing is chosen at run time yet
}
