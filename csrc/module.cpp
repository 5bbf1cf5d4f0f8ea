// Defines the pybind11 module trbext._C, which holds facts about this build. It uses neither torch's headers nor its
// libraries, so that it can be imported and can say what is wrong if torch is missing or does not fit.
#include <pybind11/pybind11.h>

#include "cpu/sweep/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of trbext; the operators are in libtrb_ops.so beside this module.";
  m.attr("version") = TRB_VERSION;
  m.attr("sources") = TRB_SOURCES;
  m.attr("torch_built_against") = TRB_TORCH_VERSION;
  m.attr("compiler") = TRB_COMPILER;
  m.attr("cuda_compiled") = static_cast<bool>(TRB_WITH_CUDA);
  m.attr("cuda_archs") = TRB_CUDA_ARCHS;
  const char* isa = trb::cpu::choose_isa();
  m.attr("cpu_isa") = isa != nullptr ? isa : "none: TRB_CPU_ISA names one that cannot run here";
}
