// Validation of the arguments of torch.ops.trb, one place for every device. Usage faults raise one error that names the
// thing, the requirement and what was got; faults in the data never raise (NaN and token -1 for that row alone).
#pragma once

#include <cmath>
#include <string>

#include "torch_compat.h"

namespace trb {

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline void check_logits(const char* op, const char* name, const Tensor& logits) {
  check(logits.dim() == 2, op, ": ", name, " must have shape [N, V], got ", shape_of(logits));
  const ScalarType dtype = logits.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16, op, ": ", name,
        " must be float32, float16 or bfloat16, got ", dtype);
}

inline void check_pair(const char* op, const Tensor& student, const Tensor& teacher, double temperature) {
  check_logits(op, "student_logits", student);
  check_logits(op, "teacher_logits", teacher);
  check(student.size(0) == teacher.size(0) && student.size(1) == teacher.size(1), op,
        ": student_logits and teacher_logits must have the same shape, got ", shape_of(student), " and ",
        shape_of(teacher), " (trbext.vocab aligns vocabularies of different width)");
  check(student.size(1) >= 1, op, ": the vocabulary must have at least one token, got shape ", shape_of(student));
  check(student.get_device() == teacher.get_device() && student.is_cpu() == teacher.is_cpu(), op,
        ": student_logits and teacher_logits must be on the same device");
  check(temperature > 0.0 && std::isfinite(temperature), op, ": temperature must be positive and finite, got ",
        temperature);
}

inline void check_epsilon(const char* op, double epsilon) {
  check(epsilon >= 0.0, op, ": epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got ", epsilon);
}

// One number per row: epsilon (float32) or uniform (float64).
inline void check_per_row(const char* op, const char* name, const Tensor& values, ScalarType dtype,
                          const Tensor& student) {
  check(values.dim() == 1 && values.size(0) == student.size(0), op, ": ", name, " must have shape [N] = [",
        student.size(0), "], got ", shape_of(values));
  check(values.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", got ", values.scalar_type());
  check(values.get_device() == student.get_device() && values.is_cpu() == student.is_cpu(), op, ": ", name,
        " must be on the device of student_logits");
}

}  // namespace trb
