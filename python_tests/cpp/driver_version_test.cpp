// Checks what is said of a driver that is too old.
#include "cuda/launch/driver_version.h"

#include <cstdio>

static int failures = 0;

static void expect(int driver, const char* words) {
  const std::string got = trb::cuda::remedy_for_driver(driver, 13000);
  if (got.find(words) != std::string::npos && got.find("must support CUDA 13.0,") != std::string::npos) return;
  std::printf("driver %d: '%s' must hold '%s'\n", driver, got.c_str(), words);
  ++failures;
}

int main() {
  expect(12060, "got one for CUDA 12.6: update the driver, or build trbext with an nvcc");
  expect(0, "got no driver: ");
  return failures;
}
