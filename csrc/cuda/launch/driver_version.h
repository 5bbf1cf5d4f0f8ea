// Names the remedy for a driver that is older than the CUDA runtime that the operators are linked with.
#pragma once

#include <string>

namespace trb::cuda {

// Versions are 1000 major + 10 minor, as CUDA counts them. A driver of 0 is none.
inline std::string remedy_for_driver(int driver, int runtime) {
  const auto text = [](int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  };
  return "the driver must support CUDA " + text(runtime) + ", with which trbext was built, got " +
         (driver == 0 ? "no driver" : "one for CUDA " + text(driver)) +
         ": update the driver, or build trbext with an nvcc that is no newer than the driver";
}

}  // namespace trb::cuda
