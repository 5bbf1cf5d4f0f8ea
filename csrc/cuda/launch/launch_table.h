// Chooses how many blocks hold a row, by V, the bytes of a logit and the device, and never by N, so that a row's result
// is the same in every batch.
//
// The choice is the smallest number of blocks of which two fit on a multiprocessor, so that one computes while the
// other loads or decides. If there is none, it is the smallest number that holds the row. If the row does not fit at
// all, it is streamed (kernel/row_source.cuh).
#pragma once

#include <cstdint>

namespace trb::cuda {

constexpr int kLargestCluster = 8;  // which every device with clusters can launch, and for which BlockState has room

struct Architecture {
  int capability;                     // 10 major + minor; the line is for all capabilities below the next line's
  int64_t shared_per_block;           // bytes
  int64_t shared_per_multiprocessor;  // bytes; each block takes 1 KiB more than it asks for
  int largest_cluster;                // blocks of one row; 1 without clusters
};

constexpr int64_t kKiB = 1024;

constexpr Architecture kArchitectures[] = {
    {80, 163 * kKiB, 164 * kKiB, 1},                 // A100
    {86, 99 * kKiB, 100 * kKiB, 1},                  // A40, RTX 30
    {87, 163 * kKiB, 164 * kKiB, 1},                 // Orin
    {89, 99 * kKiB, 100 * kKiB, 1},                  // L40S, RTX 40
    {90, 227 * kKiB, 228 * kKiB, kLargestCluster},   // H100, H200
    {100, 227 * kKiB, 228 * kKiB, kLargestCluster},  // B200, B300
    {120, 99 * kKiB, 100 * kKiB, kLargestCluster},   // RTX 50, RTX PRO
};

constexpr int64_t kVectorsPerChunk = 32;
constexpr int64_t kBytesPerVector = 16;
// An upper bound of sizeof(BlockState), which kernel/solve_rows.cuh checks.
constexpr int64_t kBlockStateBytes = 6 * kKiB;

struct Launch {
  int ranks;              // blocks of a cluster
  int32_t slice_vectors;  // 16-byte vectors of one model in each block; 0: streamed

  constexpr bool resident() const { return slice_vectors > 0; }
  constexpr int64_t shared_bytes() const { return 2 * slice_vectors * kBytesPerVector; }
};

constexpr const Architecture& architecture_of(int capability) {
  int found = 0;
  for (int i = 0; i < static_cast<int>(sizeof(kArchitectures) / sizeof(Architecture)); ++i) {
    if (kArchitectures[i].capability <= capability) found = i;
  }
  return kArchitectures[found];
}

constexpr bool fits(const Architecture& architecture, const Launch& launch, int per_multiprocessor) {
  const int64_t bytes = launch.shared_bytes() + kBlockStateBytes;
  return bytes <= architecture.shared_per_block &&
         per_multiprocessor * (bytes + kKiB) <= architecture.shared_per_multiprocessor;
}

// The launch in which `ranks` blocks hold a row.
constexpr Launch split_over(int ranks, int64_t vocab, int64_t logit_bytes) {
  const int64_t tokens = kVectorsPerChunk * kBytesPerVector / logit_bytes, chunks = (vocab + tokens - 1) / tokens;
  return {ranks, static_cast<int32_t>((chunks + ranks - 1) / ranks * kVectorsPerChunk)};
}

// `clusters` says whether the kernel was compiled with clusters. `fewest_blocks` is above 1 if the device cannot run
// fewer.
constexpr Launch launch_for(int64_t vocab, int64_t logit_bytes, int capability, bool clusters = true,
                            int fewest_blocks = 1) {
  const Architecture& architecture = architecture_of(capability);
  const int most_blocks = clusters ? architecture.largest_cluster : 1;
  for (int per_multiprocessor = 2; per_multiprocessor > 0; --per_multiprocessor) {
    for (int ranks = fewest_blocks; ranks <= most_blocks; ++ranks) {
      const Launch launch = split_over(ranks, vocab, logit_bytes);
      if (fits(architecture, launch, per_multiprocessor)) return launch;
    }
  }
  return {1, 0};
}

}  // namespace trb::cuda
