// Where a block finds its share of a row pair while it sweeps it.
//
// A row is cut into chunks of 32 vectors of 16 bytes, at multiples of the vector from the row's first token whatever
// its address, and dealt contiguously to the blocks of a cluster and to their warps: the order of every sum is the
// order of tokens and depends on V and the dtype alone, so results do not depend on batch, alignment or strides.
//
//   ResidentSlice   the chunks of one block, copied once into its shared memory: each input byte is read once
//   StreamedRow     reads the row again for every sweep, from the second-level cache if it is still there
//
// Sixteen-byte loads where both rows are contiguous, aligned and of type T; element by element otherwise (strides, odd
// offsets, dtypes that differ), and for the vector that the end of the row cuts. Beyond the end both logits read -inf.
#pragma once

#include <type_traits>

#include "kernel_args.h"
#include "logit_vector.cuh"

namespace trb::cuda {

constexpr int kWarp = 32;

template <typename T>
constexpr int kChunkTokens = kWarp * LogitVector<T>::kTokens;

template <typename T>
constexpr DType kDTypeOf = std::is_same_v<T, float>    ? DType::kFloat32
                           : std::is_same_v<T, __half> ? DType::kFloat16
                                                       : DType::kBFloat16;

template <typename T>
__device__ __forceinline__ uint4 minus_infinities() {
  const uint32_t word = std::is_same_v<T, float> ? 0xff800000u : std::is_same_v<T, __half> ? 0xfc00fc00u : 0xff80ff80u;
  return make_uint4(word, word, word, word);
}

// One row of one model in device memory.
struct LogitsRow {
  const char* data;
  int64_t stride;
  DType dtype;

  __device__ __forceinline__ LogitsRow(const Logits& logits, int64_t row)
      : data(static_cast<const char*>(logits.data) +
             row * logits.row_stride * (logits.dtype == DType::kFloat32 ? 4 : 2)),
        stride(logits.stride),
        dtype(logits.dtype) {}

  template <typename T>
  __device__ __forceinline__ bool vectors_of() const {
    return stride == 1 && dtype == kDTypeOf<T> && (reinterpret_cast<uintptr_t>(data) % kVectorBytes) == 0;
  }

  __device__ __forceinline__ float logit(int64_t token) const {
    if (dtype == DType::kFloat32) return reinterpret_cast<const float*>(data)[token * stride];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[token * stride];
    return dtype == DType::kFloat16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(uint32_t{bits} << 16);
  }
};

// A float32 that came from a T, or from a narrower type if T is float, as the bits of a T: exact.
template <typename T>
__device__ __forceinline__ uint32_t bits_of(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return __float_as_uint(value);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __half_as_ushort(__float2half_rn(value));
  } else {
    return __float_as_uint(value) >> 16;
  }
}

template <typename T>
struct RowPair {
  LogitsRow student, teacher;
  int32_t vocab;
  bool aligned;  // 16-byte loads are possible

  __device__ __forceinline__ RowPair(const KernelArgs& args, int64_t row)
      : student(args.student, row),
        teacher(args.teacher, row),
        vocab(args.vocab),
        aligned(student.vectors_of<T>() && teacher.vectors_of<T>()) {}

  // Of a chunk that lies within an aligned row. `kOnce`: it is not read again, and may leave the caches first.
  template <bool kOnce>
  __device__ __forceinline__ void whole_vectors(int32_t vector, uint4* a, uint4* b) const {
    const uint4 *from_student = reinterpret_cast<const uint4*>(student.data) + vector,
                *from_teacher = reinterpret_cast<const uint4*>(teacher.data) + vector;
    *a = kOnce ? __ldcs(from_student) : *from_student;
    *b = kOnce ? __ldcs(from_teacher) : *from_teacher;
  }

  template <bool kOnce>
  __device__ __forceinline__ void vectors(int32_t vector, uint4* a, uint4* b) const {
    const int32_t first = vector * kTokens;
    if (aligned && first + kTokens <= vocab) {
      whole_vectors<kOnce>(vector, a, b);
    } else {
      *a = elements(student, first);
      *b = elements(teacher, first);
    }
  }

  // Adds a vector that `vectors` read, without its padding.
  __device__ __forceinline__ void scan(int32_t vector, uint4 a, uint4 b,
                                       typename LogitVector<T>::Scan* extremes) const {
    const int32_t count = vocab - vector * kTokens;
    if (count >= kTokens) {
      extremes->add(a, b);
    } else if (count > 0) {
      extremes->add(without_padding(a, count), without_padding(b, count));
    }
  }

 private:
  static constexpr int kTokens = LogitVector<T>::kTokens, kPerWord = kTokens / 4;

  __device__ __forceinline__ uint4 elements(const LogitsRow& row, int32_t first) const {
    uint4 vector = minus_infinities<T>();
    uint32_t* words = reinterpret_cast<uint32_t*>(&vector);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (first + i < vocab) set_token(i, bits_of<T>(row.logit(first + i)), words);
    }
    return vector;
  }

  // Tokens from `count` on become the first one, so that extremes are those of the row.
  static __device__ __forceinline__ uint4 without_padding(uint4 vector, int count) {
    uint32_t* words = reinterpret_cast<uint32_t*>(&vector);
#pragma unroll
    for (int i = 1; i < kTokens; ++i) {
      if (i >= count) set_token(i, kPerWord == 1 ? words[0] : words[0] & 0xffffu, words);
    }
    return vector;
  }

  static __device__ __forceinline__ void set_token(int i, uint32_t bits, uint32_t* words) {
    const int shift = 16 * (i % kPerWord);
    words[i / kPerWord] = kPerWord == 1 ? bits : (words[i / kPerWord] & ~(0xffffu << shift)) | (bits << shift);
  }
};

// The chunks of a row that belong to one block or to one warp.
struct Chunks {
  int32_t begin, end;

  // Part `index` of `parts` equal ones.
  __device__ __forceinline__ Chunks part(int index, int parts) const {
    const int32_t each = (end - begin) / parts, longer = (end - begin) % parts;  // the first ones hold one more
    const int32_t first = begin + index * each + min(index, longer);
    return {first, first + each + (index < longer)};
  }
};

template <typename T>
__device__ __forceinline__ Chunks chunks_of_row(int32_t vocab) {
  return {0, (vocab + kChunkTokens<T> - 1) / kChunkTokens<T>};
}

// Both sources deal vectors by chunk and lane. `kAnyRow`: also of a row without 16-byte loads and of the cut chunk.

template <typename T>
class StreamedRow {
 public:
  static constexpr bool kResident = false;

  __device__ __forceinline__ explicit StreamedRow(const RowPair<T>& row) : row_(row) {}

  // Whether whole chunks need kAnyRow.
  __device__ __forceinline__ bool irregular() const { return !row_.aligned; }

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

  // `first_chunk` of the block lies at the start of both buffers.
  __device__ __forceinline__ ResidentSlice(uint4* student, uint4* teacher, int32_t first_chunk)
      : student_(student), teacher_(teacher), first_(first_chunk * kWarp) {}

  __device__ __forceinline__ bool irregular() const { return false; }

  template <bool kAnyRow>
  __device__ __forceinline__ void vectors(int32_t chunk, int lane, uint4* a, uint4* b) const {
    const int32_t at = chunk * kWarp + lane - first_;
    *a = student_[at];
    *b = teacher_[at];
  }

  // A lane later reads what it kept itself, so no barrier is needed in between.
  __device__ __forceinline__ void keep(int32_t chunk, int lane, uint4 a, uint4 b) const {
    const int32_t at = chunk * kWarp + lane - first_;
    student_[at] = a;
    teacher_[at] = b;
  }

 private:
  uint4 *student_, *teacher_;
  int32_t first_;
};

// The whole chunks of an aligned row, read for the first time. Unrolled: eight loads in flight per lane.
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

// Reads the warp's chunks for the first time, and for ResidentSlice the last.
template <typename T, typename Source>
__device__ __forceinline__ Extremes scan(const RowPair<T>& row, const Source& source, Chunks chunks, int lane) {
  typename LogitVector<T>::Scan extremes;
  int32_t chunk = row.aligned ? scan_whole(row, source, chunks, lane, &extremes) : chunks.begin;
#pragma unroll 1
  for (; chunk < chunks.end; ++chunk) {
    uint4 a, b;
    row.template vectors<Source::kResident>(chunk * kWarp + lane, &a, &b);
    source.keep(chunk, lane, a, b);
    row.scan(chunk * kWarp + lane, a, b, &extremes);
  }
  return extremes.result();
}

// Asks the second-level cache for the same chunks of the row this block solves next, 128 bytes a request.
template <typename T>
__device__ __forceinline__ void prefetch(const RowPair<T>& row, Chunks chunks, int lane) {
  if (!row.aligned) return;
  constexpr int kLines = kWarp * kVectorBytes / 128;  // of one chunk of one model
  const int64_t begin = static_cast<int64_t>(chunks.begin) * kLines, count = (chunks.end - chunks.begin) * kLines;
  const int64_t bytes = static_cast<int64_t>(row.vocab) * (kVectorBytes / LogitVector<T>::kTokens);
  for (int64_t line = begin + lane; line < begin + count; line += kWarp) {
    if (line * 128 >= bytes) break;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row.student.data + line * 128));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row.teacher.data + line * 128));
  }
}

}  // namespace trb::cuda
