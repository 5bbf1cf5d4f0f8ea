// Defines solve, blend and sample as torch calls them, alike for every device: they check the arguments, allocate the
// outputs, and hand one Call to the device. A device provides  void run(const Call&)  and registers Operators<run>.
#pragma once

#include "row_call.h"

namespace trb {

struct Call : RowCall {
  const Tensor& teacher;  // [N, V]
};

template <void (*run)(const Call&)>
struct Operators {
  using Outputs = RowOutputs<Call, run>;
  using Triple = typename Outputs::Triple;
  using Six = typename Outputs::Six;

  static Triple solve(const Tensor& student, const Tensor& teacher, double epsilon, double temperature) {
    return Outputs::solve(checked("trb::solve", student, teacher, epsilon, temperature));
  }
  static Triple solve_per_row(const Tensor& student, const Tensor& teacher, const Tensor& epsilon, double temperature) {
    return Outputs::solve(checked("trb::solve", student, teacher, epsilon, temperature));
  }
  static Triple blend(const Tensor& student, const Tensor& teacher, double epsilon, double temperature) {
    return Outputs::blend(checked("trb::blend", student, teacher, epsilon, temperature));
  }
  static Triple blend_per_row(const Tensor& student, const Tensor& teacher, const Tensor& epsilon, double temperature) {
    return Outputs::blend(checked("trb::blend", student, teacher, epsilon, temperature));
  }
  static Six sample(const Tensor& student, const Tensor& teacher, double epsilon, const Tensor& uniform,
                    double temperature) {
    return Outputs::sample(checked("trb::sample", student, teacher, epsilon, temperature), uniform);
  }
  static Six sample_per_row(const Tensor& student, const Tensor& teacher, const Tensor& epsilon, const Tensor& uniform,
                            double temperature) {
    return Outputs::sample(checked("trb::sample", student, teacher, epsilon, temperature), uniform);
  }

 private:
  template <typename Epsilon>
  static Call checked(const char* op, const Tensor& student, const Tensor& teacher, const Epsilon& epsilon,
                      double temperature) {
    check_pair(op, student, teacher, temperature);
    Call call{{op, student, temperature}, teacher};
    set_epsilon(call, epsilon);
    return call;
  }
};

// Registers the operators. Used in a TRB_LIBRARY_IMPL block of the device.
#define TRB_REGISTER_OPERATORS(m, run)                                     \
  m.impl("blend", TORCH_BOX(&trb::Operators<run>::blend));                 \
  m.impl("blend.per_row", TORCH_BOX(&trb::Operators<run>::blend_per_row)); \
  m.impl("solve", TORCH_BOX(&trb::Operators<run>::solve));                 \
  m.impl("solve.per_row", TORCH_BOX(&trb::Operators<run>::solve_per_row)); \
  m.impl("sample", TORCH_BOX(&trb::Operators<run>::sample));               \
  m.impl("sample.per_row", TORCH_BOX(&trb::Operators<run>::sample_per_row))

}  // namespace trb
