// Checks which values the environment may give for a launch.
#include "cuda/launch/launch_overrides.h"

#include <cstdio>
#include <cstring>

using namespace trb::cuda;

static int failures = 0;

static void expect(const char* ranks, const char* prefetch, int expected_ranks, bool expected_prefetch) {
  setenv("TRB_CUDA_RANKS", ranks, 1);
  setenv("TRB_CUDA_PREFETCH", prefetch, 1);
  const LaunchOverrides got = read_launch_overrides();
  if (got.ranks == expected_ranks && got.prefetch == expected_prefetch) return;
  std::printf("ranks '%s', prefetch '%s': got %d, %d\n", ranks, prefetch, got.ranks, got.prefetch);
  ++failures;
}

static void expect_refused(const char* variable, const char* text) {
  unsetenv("TRB_CUDA_RANKS");
  unsetenv("TRB_CUDA_PREFETCH");
  setenv(variable, text, 1);
  try {
    read_launch_overrides();
  } catch (const std::runtime_error& error) {
    if (std::strstr(error.what(), variable) != nullptr && std::strstr(error.what(), text) != nullptr) return;
    std::printf("%s=%s: the error is '%s'\n", variable, text, error.what());
    ++failures;
    return;
  }
  std::printf("%s=%s was taken\n", variable, text);
  ++failures;
}

int main() {
  expect("", "", 0, true);
  expect("8", "0", 8, false);
  expect("1", "1", 1, true);
  expect("16", "1", 16, true);
  for (const char* text : {"0", "17", "32", "-1", "six", "6 blocks", "99999999999999999999"}) {
    expect_refused("TRB_CUDA_RANKS", text);
  }
  for (const char* text : {"2", "off", "-1"}) expect_refused("TRB_CUDA_PREFETCH", text);
  unsetenv("TRB_CUDA_PREFETCH");
  setenv("TRB_CUDA_RANKS", "5", 1);
  if (launch_overrides().ranks != 5) ++failures;
  setenv("TRB_CUDA_RANKS", "7", 1);  // read once
  if (launch_overrides().ranks != 5) ++failures;
  return failures;
}
