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
static_assert(launch_for(151936, 2, 90, true, 7).ranks == 7 && launch_for(151936, 2, 90, true, 9).sections == 1);
static_assert(!launch_for(151936, 2, 90, false).resident());
static_assert(launch_for(32768, 2, 90).ranks == 2);
static_assert(launch_for(32768, 2, 80).ranks == 1 && launch_for(32768, 2, 80).resident());
static_assert(!launch_for(151936, 2, 80).resident());
static_assert(!launch_for(32768, 2, 89).resident() && launch_for(32768, 2, 120).ranks > 1);
static_assert(launch_for(262144, 4, 90).ranks == 10 && launch_for(262144, 4, 90).sections == 1);
static_assert(launch_for(262144, 2, 90).ranks == 5 && !launch_for(1000000, 2, 90).resident());
static_assert(!launch_for(262144, 4, 90, true, 17).resident());
static_assert(split_over(6, 151936, 2).slice_vectors == launch_for(151936, 2, 90).slice_vectors);
// The wide launch has as many sections as the usual one, of which there are at most kMostSections.
static_assert(widened(launch_for(151936, 2, 90), 151936, 2).ranks == 12);
static_assert(widened(launch_for(262144, 4, 90), 262144, 4).ranks == 10);
static_assert(widened(launch_for(32768, 2, 89), 32768, 2).ranks == 1);
static_assert(split_over(16, 262144, 4).resident() && fits(architecture_of(90), split_over(16, 262144, 4), 1));
static_assert(!fits(architecture_of(90), split_over(2, 151936, 2), 1));

// The strips cover the chunks in order, differ by one chunk at most, and those of a block fit into its slice.
static void check_strips(const Launch& launch, long long vocab, int bytes) {
  const Strips strips = strips_of(launch, vocab, bytes);
  const long long chunks = chunks_of(vocab, bytes);
  const int count = launch.ranks * launch.sections * kStripsPerSection, of_block = launch.sections * kStripsPerSection;
  EXPECT(strips.begin(0) == 0 && strips.begin(count) == chunks, "V %lld of %d bytes", vocab, bytes);
  for (int i = 0; i < count; ++i) {
    const long long exact = i * chunks / count, here = strips.begin(i + 1) - strips.begin(i);
    EXPECT(strips.begin(i) == exact, "strip %d of V %lld begins at %d", i, vocab, strips.begin(i));
    EXPECT(here == chunks / count || here == chunks / count + 1, "strip %d of V %lld has %lld", i, vocab, here);
    if (launch.resident() && i % of_block == 0) {
      EXPECT((strips.begin(i + of_block) - strips.begin(i)) * kVectorsPerChunk <= launch.slice_vectors,
             "block %d of V %lld", i / of_block, vocab);
    }
  }
}

// Few rows take the wide launch, and all rows do if only of its blocks two fit on a multiprocessor.
static void check_rows_of_wide() {
  const Architecture& h100 = architecture_of(90);
  const Launch usual = launch_for(151936, 2, 90), one = launch_for(151936, 4, 90);
  const Launch wide = widened(usual, 151936, 2), overlapping = widened(one, 151936, 4);
  const auto takes = [&](int64_t rows) { return takes_wide(h100, usual, 42, wide, 18, rows); };
  EXPECT(takes(1) && takes(18) && !takes(19) && !takes(42), "one turn");
  EXPECT(takes(43) && takes(54) && !takes(55) && !takes(4096), "three turns in the place of two");
  EXPECT(!takes_wide(h100, usual, 42, wide, 0, 1), "the device runs none");
  EXPECT(!takes_wide(h100, usual, 42, usual, 42, 1), "there is none");
  EXPECT(takes_wide(h100, one, 18, overlapping, 18, 4096), "two blocks on a multiprocessor");
  EXPECT(!takes_wide(h100, one, 18, overlapping, 17, 4096), "fewer rows in flight");
}

int main() {
  check_rows_of_wide();
  for (const int capability : {80, 86, 87, 89, 90, 100, 103, 110, 120, 121}) {
    const Architecture& architecture = architecture_of(capability);
    EXPECT(architecture.capability <= capability, "capability %d", capability);
    EXPECT(capability >= 90 || architecture.largest_cluster == 1, "capability %d has no clusters", capability);
    for (const long long vocab : {1LL, 17LL, 255LL, 256LL, 257LL, 4099LL, 32768LL, 49152LL, 50257LL, 128256LL, 151936LL,
                                  152064LL, 262144LL, 1000000LL, 2147418112LL}) {
      for (const int bytes : {2, 4}) {
        const Launch launch = launch_for(vocab, bytes, capability), wide = widened(launch, vocab, bytes);
        check_strips(launch, vocab, bytes);
        EXPECT(wide.ranks * wide.sections == launch.ranks * launch.sections, "V %lld on %d", vocab, capability);
        EXPECT(wide.ranks * wide.sections <= kMostSections, "V %lld on %d", vocab, capability);
        EXPECT(wide.slice_vectors <= launch.slice_vectors, "V %lld on %d", vocab, capability);
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
