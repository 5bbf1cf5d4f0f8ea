// Defines solve_top_k, blend_top_k and sample_top_k as torch calls them, alike for every device. A device provides
// void run(const TopKCall&)  and registers TopKOperators<run>.
#pragma once

#include "row_call.h"
#include "top_k_tensors.h"

namespace trb {

struct TopKCall : RowCall {
  const Tensor& ids;                // [N, k]
  const Tensor& teacher_log_probs;  // [N, k]
};

template <void (*run)(const TopKCall&)>
struct TopKOperators {
  using Outputs = RowOutputs<TopKCall, run>;
  using Triple = typename Outputs::Triple;
  using Six = typename Outputs::Six;

  static Triple solve(const Tensor& student, const Tensor& ids, const Tensor& log_probs, double epsilon,
                      double temperature) {
    return Outputs::solve(checked("trb::solve_top_k", student, ids, log_probs, epsilon, temperature));
  }
  static Triple solve_per_row(const Tensor& student, const Tensor& ids, const Tensor& log_probs, const Tensor& epsilon,
                              double temperature) {
    return Outputs::solve(checked("trb::solve_top_k", student, ids, log_probs, epsilon, temperature));
  }
  static Triple blend(const Tensor& student, const Tensor& ids, const Tensor& log_probs, double epsilon,
                      double temperature) {
    return Outputs::blend(checked("trb::blend_top_k", student, ids, log_probs, epsilon, temperature));
  }
  static Triple blend_per_row(const Tensor& student, const Tensor& ids, const Tensor& log_probs, const Tensor& epsilon,
                              double temperature) {
    return Outputs::blend(checked("trb::blend_top_k", student, ids, log_probs, epsilon, temperature));
  }
  static Six sample(const Tensor& student, const Tensor& ids, const Tensor& log_probs, double epsilon,
                    const Tensor& uniform, double temperature) {
    return Outputs::sample(checked("trb::sample_top_k", student, ids, log_probs, epsilon, temperature), uniform);
  }
  static Six sample_per_row(const Tensor& student, const Tensor& ids, const Tensor& log_probs, const Tensor& epsilon,
                            const Tensor& uniform, double temperature) {
    return Outputs::sample(checked("trb::sample_top_k", student, ids, log_probs, epsilon, temperature), uniform);
  }

 private:
  template <typename Epsilon>
  static TopKCall checked(const char* op, const Tensor& student, const Tensor& ids, const Tensor& log_probs,
                          const Epsilon& epsilon, double temperature) {
    check_logits(op, "student_logits", student);
    check_vocabulary(op, student);
    check_top_k(op, ids, log_probs, student);
    check(ids.size(0) == student.size(0), op, ": teacher_ids must have shape [N, k] with N = ", student.size(0),
          ", got ", shape_of(ids));
    check_temperature(op, temperature);
    TopKCall call{{op, student, temperature}, ids, log_probs};
    set_epsilon(call, epsilon);
    return call;
  }
};

// Registers the operators. Used in a TRB_LIBRARY_IMPL block of the device.
#define TRB_REGISTER_TOP_K_OPERATORS(m, run)                                         \
  m.impl("blend_top_k", TORCH_BOX(&trb::TopKOperators<run>::blend));                 \
  m.impl("blend_top_k.per_row", TORCH_BOX(&trb::TopKOperators<run>::blend_per_row)); \
  m.impl("solve_top_k", TORCH_BOX(&trb::TopKOperators<run>::solve));                 \
  m.impl("solve_top_k.per_row", TORCH_BOX(&trb::TopKOperators<run>::solve_per_row)); \
  m.impl("sample_top_k", TORCH_BOX(&trb::TopKOperators<run>::sample));               \
  m.impl("sample_top_k.per_row", TORCH_BOX(&trb::TopKOperators<run>::sample_per_row))

}  // namespace trb
