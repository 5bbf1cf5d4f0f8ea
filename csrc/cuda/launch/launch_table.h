// Chooses how a row is held, by V, the bytes of a logit and the device.
//
// A row is cut into sections, and a section into eight strips of whole chunks. Every sum is added up by strips, then by
// sections, so that a row's result does not depend on how many blocks hold it. Hence the number of sections depends on
// V, the bytes of a logit and the device, and never on N, while the number of blocks may depend on N:
//
//   usual  a block has two sections. It is the smallest number of blocks of which two fit on a multiprocessor, so that
//          one computes while the other loads or decides, or else the smallest number that holds the row.
//   wide   a block has one section. Twice the blocks share the work, for few rows.
//
// A row that takes more than kPortableCluster blocks in any case has one section in each. One that does not fit at all
// is streamed (kernel/row_source.cuh).
#pragma once

#include <cstdint>

#include "../../host_device.h"

namespace trb::cuda {

constexpr int kPortableCluster = 8;  // blocks; every device with clusters can launch so many
constexpr int kLargestCluster = 16;  // for which BlockState has room; the device is asked whether it can
constexpr int kStripsPerSection = 8, kSectionsPerBlock = 2;  // the latter at most
constexpr int kMostSections = 16;                            // of a row

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
constexpr int64_t kBlockStateBytes = 9 * kKiB;

struct Launch {
  int ranks;              // blocks of a cluster
  int sections;           // of each block
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

constexpr int64_t chunks_of(int64_t vocab, int64_t logit_bytes) {
  const int64_t tokens = kVectorsPerChunk * kBytesPerVector / logit_bytes;
  return (vocab + tokens - 1) / tokens;
}

// The launch in which `ranks` blocks hold a row.
constexpr Launch split_over(int ranks, int64_t vocab, int64_t logit_bytes) {
  const int64_t chunks = chunks_of(vocab, logit_bytes);
  return {ranks, ranks <= kPortableCluster ? kSectionsPerBlock : 1,
          static_cast<int32_t>((chunks + ranks - 1) / ranks * kVectorsPerChunk)};
}

// The launch in which twice the blocks hold the row of a usual one, with the same results; that launch itself if there
// is none.
constexpr Launch widened(const Launch& usual, int64_t vocab, int64_t logit_bytes) {
  if (!usual.resident() || usual.sections == 1) return usual;
  return {2 * usual.ranks, 1, split_over(2 * usual.ranks, vocab, logit_bytes).slice_vectors};
}

// Whether the wide launch is faster for a call of `rows` rows (benchmarks/models/cuda_model.py), by how many clusters
// of either launch the device runs at once. It is faster for every number of rows if two wide blocks but only one usual
// block fit on a multiprocessor, and as many rows are in flight. Otherwise it is faster if it solves all rows in one
// turn, or if it needs three turns and the usual launch would leave its second turn nearly empty.
constexpr bool takes_wide(const Architecture& architecture, const Launch& usual, int64_t clusters_of_usual,
                          const Launch& wide, int64_t clusters_of_wide, int64_t rows) {
  if (wide.ranks == usual.ranks || clusters_of_wide == 0) return false;
  const bool overlaps = fits(architecture, wide, 2) && !fits(architecture, usual, 2);
  if (overlaps && clusters_of_wide >= clusters_of_usual) return true;
  return rows <= clusters_of_wide || (rows > clusters_of_usual && rows <= 3 * clusters_of_wide);
}

// Where the strips of a row begin: strip i at chunk i each + i rest / strips. The division is a multiplication, exact
// for as many strips as there are.
struct Strips {
  int32_t each, rest;
  uint32_t inverse;  // 2^24 / strips, rounded up

  TRB_HD constexpr int32_t begin(int32_t strip) const {
    return strip * each + static_cast<int32_t>(static_cast<uint32_t>(strip * rest) * inverse >> 24);
  }
};

constexpr Strips strips_of(const Launch& launch, int64_t vocab, int64_t logit_bytes) {
  const int64_t strips = int64_t{launch.ranks} * launch.sections * kStripsPerSection;
  const int64_t chunks = chunks_of(vocab, logit_bytes);
  return {static_cast<int32_t>(chunks / strips), static_cast<int32_t>(chunks % strips),
          static_cast<uint32_t>(((int64_t{1} << 24) + strips - 1) / strips)};
}

// The usual launch. `clusters` says whether the kernel was compiled with clusters. `fewest_blocks` is above 1 if the
// device cannot run fewer.
constexpr Launch launch_for(int64_t vocab, int64_t logit_bytes, int capability, bool clusters = true,
                            int fewest_blocks = 1) {
  const Architecture& architecture = architecture_of(capability);
  const int most_blocks = clusters ? architecture.largest_cluster : 1;
  const int portable = most_blocks < kPortableCluster ? most_blocks : kPortableCluster;
  for (int per_multiprocessor = 2; per_multiprocessor > 0; --per_multiprocessor) {
    for (int ranks = fewest_blocks; ranks <= portable; ++ranks) {
      const Launch launch = split_over(ranks, vocab, logit_bytes);
      if (fits(architecture, launch, per_multiprocessor)) return launch;
    }
  }
  for (int ranks = fewest_blocks > portable ? fewest_blocks : portable + 1; ranks <= most_blocks; ++ranks) {
    const Launch launch = split_over(ranks, vocab, logit_bytes);
    if (fits(architecture, launch, 1)) return launch;
  }
  return {1, kSectionsPerBlock, 0};
}

}  // namespace trb::cuda
