// Reads what the environment changes about a launch, so that two ways can be compared in one build. The first launch
// reads it, and no later one does.
//
//   TRB_CUDA_RANKS     how many blocks hold a row, 1 .. kLargestCluster; unset: as the launch table says. Up to
//                      kPortableCluster they have two sections each, otherwise one
//   TRB_CUDA_PREFETCH  0: the next row is not prefetched; 1 or unset: it is
//
// Another number of sections adds the sums in another order, so the last bits of a result may differ.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "launch_table.h"

namespace trb::cuda {

struct LaunchOverrides {
  int ranks = 0;  // 0: as the launch table says
  bool prefetch = true;
};

inline int whole_number_of(const char* variable, int least, int most, int otherwise) {
  const char* const text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return otherwise;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end != '\0' || value < least || value > most) {
    throw std::runtime_error(std::string("trb: ") + variable + " must be a whole number from " + std::to_string(least) +
                             " to " + std::to_string(most) + ", got '" + text + "'");
  }
  return static_cast<int>(value);
}

inline LaunchOverrides read_launch_overrides() {
  return {whole_number_of("TRB_CUDA_RANKS", 1, kLargestCluster, 0), whole_number_of("TRB_CUDA_PREFETCH", 0, 1, 1) == 1};
}

inline const LaunchOverrides& launch_overrides() {
  static const LaunchOverrides overrides = read_launch_overrides();
  return overrides;
}

}  // namespace trb::cuda
