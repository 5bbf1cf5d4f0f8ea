// Checks the arguments of torch.ops.trb, in one place for every device. A usage fault raises one error that names the
// argument, the requirement and what was got. A fault in the data of a row never raises: only that row gets NaN and
// token -1.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "../torch_compat.h"
#include "verify_requests.h"

namespace trb {

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline void check_device(const char* op, const char* name, const Tensor& tensor, const Tensor& student) {
  check(tensor.get_device() == student.get_device() && tensor.is_cpu() == student.is_cpu(), op, ": ", name,
        " must be on the device of student_logits");
}

// Checks a tensor that holds one number per row or per request.
inline void check_column(const char* op, const char* name, const Tensor& values, const char* shape, int64_t size,
                         ScalarType dtype, const Tensor& student) {
  check(values.dim() == 1 && values.size(0) == size, op, ": ", name, " must have shape ", shape, " = [", size,
        "], got ", shape_of(values));
  check(values.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", got ", values.scalar_type());
  check_device(op, name, values, student);
}

inline void check_logits(const char* op, const char* name, const Tensor& logits) {
  check(logits.dim() == 2, op, ": ", name, " must have shape [N, V], got ", shape_of(logits));
  const ScalarType dtype = logits.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16, op, ": ", name,
        " must be float32, float16 or bfloat16, got ", dtype);
}

inline void check_vocabulary(const char* op, const Tensor& student) {
  check(student.size(1) >= 1, op, ": the vocabulary must have at least one token, got shape ", shape_of(student));
}

inline void check_temperature(const char* op, double temperature) {
  check(is_temperature(temperature), op, ": temperature must be between 1e-6 and 1e6, got ", temperature);
}

inline void check_pair(const char* op, const Tensor& student, const Tensor& teacher, double temperature) {
  check_logits(op, "student_logits", student);
  check_logits(op, "teacher_logits", teacher);
  check(student.size(0) == teacher.size(0) && student.size(1) == teacher.size(1), op,
        ": student_logits and teacher_logits must have the same shape, got ", shape_of(student), " and ",
        shape_of(teacher), " (trbext.vocab aligns vocabularies of different width)");
  check_vocabulary(op, student);
  check_device(op, "teacher_logits", teacher, student);
  check_temperature(op, temperature);
}

inline void check_epsilon(const char* op, double epsilon) {
  check(epsilon >= 0.0, op, ": epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got ", epsilon);
}

// Checks a tensor that holds one number per row: epsilon (float32) or uniform (float64).
inline void check_per_row(const char* op, const char* name, const Tensor& values, ScalarType dtype,
                          const Tensor& student) {
  check_column(op, name, values, "[N]", student.size(0), dtype, student);
}

// Checks a top-k teacher: the ids and log-probabilities of k tokens in each of its rows.
inline void check_top_k(const char* op, const Tensor& ids, const Tensor& log_probs, const Tensor& student) {
  check(ids.dim() == 2, op, ": teacher_ids must have shape [N, k], got ", shape_of(ids));
  check(log_probs.dim() == 2 && log_probs.size(0) == ids.size(0) && log_probs.size(1) == ids.size(1), op,
        ": teacher_log_probs must have the shape of teacher_ids, got ", shape_of(log_probs), " and ", shape_of(ids));
  const ScalarType dtype = ids.scalar_type();
  check(dtype == ScalarType::Int || dtype == ScalarType::Long, op, ": teacher_ids must be int32 or int64, got ", dtype);
  check(log_probs.scalar_type() == ScalarType::Float, op, ": teacher_log_probs must be Float, got ",
        log_probs.scalar_type());
  check_device(op, "teacher_ids", ids, student);
  check_device(op, "teacher_log_probs", log_probs, student);
}

// Checks the logits of trb::verify, which may differ in rows and columns. Returns how many columns both models use.
inline int64_t check_verify_logits(const char* op, const Tensor& student, const Tensor& teacher, int64_t vocab) {
  check_logits(op, "student_logits", student);
  check_logits(op, "teacher_logits", teacher);
  check_device(op, "teacher_logits", teacher, student);
  const int64_t common = student.size(1) < teacher.size(1) ? student.size(1) : teacher.size(1);
  check(common >= 1, op, ": the vocabulary must have at least one token, got student_logits ", shape_of(student),
        " and teacher_logits ", shape_of(teacher));
  check(vocab >= 0 && vocab <= common, op, ": vocab must be between 0 (the width both models have) and ", common,
        ", got ", vocab);
  return vocab == 0 ? common : vocab;
}

// Checks int32 or int64 indices of `size` elements, or of any number if `size` is -1.
inline void check_indices(const char* op, const char* name, const Tensor& values, const char* shape, int64_t size,
                          const Tensor& student) {
  check(values.dim() == 1 && (size < 0 || values.size(0) == size), op, ": ", name, " must have shape ", shape,
        size < 0 ? "" : " = [" + std::to_string(size) + "]", ", got ", shape_of(values));
  const ScalarType dtype = values.scalar_type();
  check(dtype == ScalarType::Int || dtype == ScalarType::Long, op, ": ", name, " must be int32 or int64, got ", dtype);
  check_device(op, name, values, student);
}

// Checks the indices that say which row of `logits` belongs to each of the N rows. Without indices, `logits` must have
// a row for each of them.
inline void check_row_indices(const char* op, const char* name, const char* logits_name,
                              const std::optional<Tensor>& indices, int64_t rows, const Tensor& logits,
                              const Tensor& student) {
  if (indices.has_value()) {
    check_indices(op, name, *indices, "[N]", rows, student);
  } else {
    check(logits.size(0) >= rows, op, ": ", logits_name, " must have at least N = ", rows, " rows if ", name,
          " is not given, got ", shape_of(logits));
  }
}

inline void check_out(const char* op, const char* name, const Tensor& out, const std::vector<int64_t>& shape,
                      const std::vector<ScalarType>& dtypes, const Tensor& student) {
  std::string wanted = "[";
  bool same = out.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    wanted += (i ? ", " : "") + std::to_string(shape[i]);
    same = same && out.size(static_cast<int64_t>(i)) == shape[i];
  }
  check(same, op, ": output ", name, " must have shape ", wanted, "], got ", shape_of(out));
  bool known = false;
  std::ostringstream names;
  for (const ScalarType dtype : dtypes) {
    names << (names.tellp() > 0 ? " or " : "") << dtype;
    known = known || out.scalar_type() == dtype;
  }
  check(known, op, ": output ", name, " must be ", names.str(), ", got ", out.scalar_type());
  check(out.is_contiguous(), op, ": output ", name, " must be contiguous");
  check_device(op, name, out, student);
}

// The bytes from a tensor's first element to its last, gaps included.
struct Extent {
  const char* begin;
  const char* end;
};

inline Extent extent_of(const Tensor& tensor) {
  const char* const begin = static_cast<const char*>(tensor.const_data_ptr());
  if (tensor.numel() == 0) return {begin, begin};
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  return {begin, begin + (last + 1) * static_cast<int64_t>(tensor.element_size())};
}

// Checks that an output shares no memory with another tensor, which the device may read or write at the same time.
inline void check_apart(const char* op, const char* output, const Tensor& written, const char* name,
                        const Tensor& other) {
  const Extent a = extent_of(written), b = extent_of(other);
  check(a.begin == a.end || b.begin == b.end || a.end <= b.begin || b.end <= a.begin, op, ": output ", output,
        " must not share memory with ", name);
}

}  // namespace trb
