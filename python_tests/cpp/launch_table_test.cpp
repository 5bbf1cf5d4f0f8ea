// Checks the launch table for every architecture, vocabulary and dtype: it keeps the limits, and streams rows that do
// not fit.
#include "cuda/launch/launch_table.h"

#include <cstdio>
#include <initializer_list>

using namespace trb::cuda;

static int failures = 0;

#define EXPECT(condition, ...)                                    \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
      ++failures;                                                 \
    }                                                             \
  } while (false)

// The table is known at compile time.
static_assert(launch_for(151936, 2, 90).ranks == 6 && launch_for(151936, 2, 90).resident());
static_assert(launch_for(151936, 4, 90).ranks == 6 && launch_for(151936, 4, 90).resident());
static_assert(launch_for(151936, 2, 90, true, 7).ranks == 7 && launch_for(151936, 2, 90, true, 9).ranks == 1);
static_assert(!launch_for(151936, 2, 90, false).resident());
static_assert(launch_for(32768, 2, 90).ranks == 2);
static_assert(launch_for(32768, 2, 80).ranks == 1 && launch_for(32768, 2, 80).resident());
static_assert(!launch_for(151936, 2, 80).resident());
static_assert(!launch_for(32768, 2, 89).resident() && launch_for(32768, 2, 120).ranks > 1);
static_assert(!launch_for(262144, 4, 90).resident() && launch_for(262144, 2, 90).resident());
static_assert(split_over(6, 151936, 2).slice_vectors == launch_for(151936, 2, 90).slice_vectors);
static_assert(split_over(16, 262144, 4).resident() && fits(architecture_of(90), split_over(16, 262144, 4), 1));
static_assert(!fits(architecture_of(90), split_over(2, 151936, 2), 1));

int main() {
  for (const int capability : {80, 86, 87, 89, 90, 100, 103, 110, 120, 121}) {
    const Architecture& architecture = architecture_of(capability);
    EXPECT(architecture.capability <= capability, "capability %d", capability);
    EXPECT(capability >= 90 || architecture.largest_cluster == 1, "capability %d has no clusters", capability);
    for (const long long vocab : {1LL, 17LL, 255LL, 256LL, 257LL, 4099LL, 32768LL, 49152LL, 50257LL, 128256LL, 151936LL,
                                  152064LL, 262144LL, 1000000LL, 2147418112LL}) {
      for (const int bytes : {2, 4}) {
        const Launch launch = launch_for(vocab, bytes, capability);
        EXPECT(launch.ranks >= 1 && launch.ranks <= architecture.largest_cluster, "%d blocks on %d", launch.ranks,
               capability);
        if (!launch.resident()) {
          // One more block size would not have helped: the row really is too large.
          EXPECT(2 * vocab * bytes > architecture.largest_cluster * (architecture.shared_per_block - kBlockStateBytes) -
                                         architecture.largest_cluster * 2 * kVectorsPerChunk * kBytesPerVector,
                 "V %lld of %d bytes is streamed on %d", vocab, bytes, capability);
          EXPECT(launch.ranks == 1, "a streamed row has one block");
          continue;
        }
        const long long held = static_cast<long long>(launch.ranks) * launch.slice_vectors * kBytesPerVector / bytes;
        EXPECT(held >= vocab, "V %lld: only %lld logits fit", vocab, held);
        EXPECT(launch.shared_bytes() + kBlockStateBytes <= architecture.shared_per_block,
               "V %lld of %d bytes asks for %lld bytes on %d", vocab, bytes,
               static_cast<long long>(launch.shared_bytes()), capability);
      }
    }
  }
  return failures < 100 ? failures : 100;
}
