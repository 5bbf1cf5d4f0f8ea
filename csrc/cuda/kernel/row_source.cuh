// Gives a block its share of both models' rows while it sweeps them.
//
// A row is cut into chunks of 32 vectors of 16 bytes, counted from the row's first token whatever its address. Each
// strip has consecutive chunks, each warp has one strip or two neighbors, and each block the strips of one section or
// two (launch_table.h). Every sum is therefore in the order of tokens and depends only on V, the dtype and the device,
// so that results do not depend on batch size, alignment or strides.
//
//   ResidentSlice   the chunks of one block, copied once into its shared memory: each input byte is read once
//   StreamedRow     reads the row again for every sweep, from the second-level cache if it is still there
//
// Rows are read by 16-byte loads if both are contiguous and of type T. A streamed row must be aligned as well; a
// resident one need not be (unaligned_row.cuh). Other rows, and the chunk that the end of the row cuts, are read logit
// by logit. Beyond the end both logits are -inf.
#pragma once

#include "block_state.cuh"
#include "unaligned_row.cuh"

namespace trb::cuda {

template <typename T>
__device__ __forceinline__ Chunks chunks_of_row(int32_t vocab) {
  return {0, (vocab + kChunkTokens<T> - 1) / kChunkTokens<T>};
}

// What a warp sweeps.
struct WarpShare {
  int section;  // of the block
  int first;    // strip of the block
  int strips;   // of the warp
};

// Both sources give vectors by chunk and lane. Without `kAnyRow`, the chunk must be whole and the row not irregular.

template <typename T>
class StreamedRow {
 public:
  static constexpr bool kResident = false;

  __device__ __forceinline__ explicit StreamedRow(const RowPair<T>& row) : row_(row) {}

  // Whether even whole chunks need kAnyRow.
  __device__ __forceinline__ bool irregular() const { return !row_.aligned || row_.converted(); }

  template <bool kAnyRow>
  __device__ __forceinline__ void vectors(int32_t chunk, int lane, uint4* a, uint4* b) const {
    if constexpr (kAnyRow) {
      row_.template vectors<false>(chunk * kWarp + lane, a, b);
    } else {
      row_.template whole_vectors<false>(chunk * kWarp + lane, a, b);
    }
  }

  __device__ __forceinline__ void keep(int32_t, int, uint4, uint4) const {}

 private:
  RowPair<T> row_;
};

template <typename T>
class ResidentSlice {
 public:
  static constexpr bool kResident = true;

  // Both buffers begin with `first_chunk`, the first chunk of the block, and have `slice_vectors` vectors. All lanes
  // have addresses of their own, in registers: the compiler would compute them anew in every pass of a loop.
  __device__ __forceinline__ ResidentSlice(uint4* slices, int32_t slice_vectors, int32_t first_chunk, int lane)
      : student_(static_cast<uint32_t>(__cvta_generic_to_shared(slices)) + (lane - first_chunk * kWarp) * kVectorBytes),
        to_teacher_(slice_vectors * kVectorBytes) {
    asm volatile("" : "+r"(student_), "+r"(to_teacher_));
  }

  __device__ __forceinline__ bool irregular() const { return false; }

  template <bool kAnyRow>
  __device__ __forceinline__ void vectors(int32_t chunk, int, uint4* a, uint4* b) const {
    const uint32_t at = student_ + chunk * kChunkBytes;
    *a = load(at);
    *b = load(at + to_teacher_);
  }

  // Each lane later reads only what it kept itself, so no barrier is needed in between.
  __device__ __forceinline__ void keep(int32_t chunk, int, uint4 a, uint4 b) const {
    const uint32_t at = student_ + chunk * kChunkBytes;
    store(at, a);
    store(at + to_teacher_, b);
  }

 private:
  static constexpr int kChunkBytes = kWarp * kVectorBytes;

  static __device__ __forceinline__ uint4 load(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
  }
  static __device__ __forceinline__ void store(uint32_t address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
  }

  uint32_t student_, to_teacher_;  // of the lane's vector in chunk 0 of the row, and from there to the teacher's
};

// Reads the whole chunks of an aligned row for the first time, and returns the chunk after them. Unrolled, so that
// eight loads per lane are in flight.
template <typename T, typename Source>
__device__ __forceinline__ int32_t scan_whole(const RowPair<T>& row, const Source& source, Chunks chunks, int lane,
                                              typename LogitVector<T>::Scan* extremes) {
  const int32_t whole = min(chunks.end, row.vocab / kChunkTokens<T>);
  int32_t chunk = chunks.begin;
#pragma unroll 4
  for (; chunk < whole; ++chunk) {
    uint4 a, b;
    row.template whole_vectors<Source::kResident>(chunk * kWarp + lane, &a, &b);
    source.keep(chunk, lane, a, b);
    extremes->add(a, b);
  }
  return chunk;
}

// The same for a contiguous row that is not aligned.
template <typename T, typename Source>
__device__ __forceinline__ int32_t scan_unaligned(const RowPair<T>& row, const Source& source, Chunks chunks, int lane,
                                                  typename LogitVector<T>::Scan* extremes) {
  const int32_t whole = min(chunks.end, row.vocab / kChunkTokens<T>);
  int32_t chunk = chunks.begin;
  if (chunk >= whole) return chunk;
  UnalignedChunks<T> student(row.student, chunk * kWarp + lane, lane), teacher(row.teacher, chunk * kWarp + lane, lane);
#pragma unroll 1
  for (; chunk < whole; ++chunk) {
    const bool last = chunk + 1 == whole;
    const uint4 a = row.convert(student.next(chunk * kWarp + lane, last, lane)),
                b = teacher.next(chunk * kWarp + lane, last, lane);
    source.keep(chunk, lane, a, b);
    extremes->add(a, b);
  }
  return chunk;
}

// Reads the warp's chunks for the first time, and returns their extremes. A ResidentSlice keeps them, and does not read
// device memory again.
template <typename T, typename Source>
__device__ __forceinline__ Extremes scan(const RowPair<T>& row, const Source& source, Chunks chunks, int lane) {
  typename LogitVector<T>::Scan extremes;
  int32_t chunk = chunks.begin;
  if (row.aligned && !row.converted()) {
    chunk = scan_whole(row, source, chunks, lane, &extremes);
  } else if (Source::kResident && row.contiguous && !row.aligned) {
    chunk = scan_unaligned(row, source, chunks, lane, &extremes);
  }
#pragma unroll 1
  for (; chunk < chunks.end; ++chunk) {
    uint4 a, b;
    row.template vectors<Source::kResident>(chunk * kWarp + lane, &a, &b);
    source.keep(chunk, lane, a, b);
    row.scan(chunk * kWarp + lane, a, b, &extremes);
  }
  return extremes.result();
}

// Prefetches `bytes` from `data` into the second-level cache, but for the parts of 16 bytes at both ends.
__device__ __forceinline__ void prefetch_bytes(const char* data, int64_t bytes) {
  const int64_t before = -static_cast<int64_t>(reinterpret_cast<uintptr_t>(data)) & (kVectorBytes - 1),
                whole = (bytes - before) & -kVectorBytes;
  if (whole <= 0) return;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(data + before), "r"(static_cast<uint32_t>(whole)));
}

// Prefetches a warp's chunks of a row into the second-level cache: by one instruction for each model from compute
// capability 9.0 on, before it by one for every 128 bytes.
template <typename T>
__device__ __forceinline__ void prefetch(const RowPair<T>& row, Chunks chunks, int lane) {
  if (!row.contiguous) return;
  constexpr int64_t kChunkBytes = kWarp * kVectorBytes;
  const int64_t row_bytes = static_cast<int64_t>(row.vocab) * (kVectorBytes / LogitVector<T>::kTokens);
  const int64_t begin = chunks.begin * kChunkBytes, end = min(chunks.end * kChunkBytes, row_bytes);
#if __CUDA_ARCH__ >= 900
  if (lane != 0) return;
  prefetch_bytes(row.student.data + begin, end - begin);
  prefetch_bytes(row.teacher.data + begin, end - begin);
#else
  for (int64_t at = begin + lane * 128; at < end; at += kWarp * 128) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row.student.data + at));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row.teacher.data + at));
  }
#endif
}

}  // namespace trb::cuda
