// Rounding to nearest and subnormal numbers as they are, on whatever thread a row is solved: torch.set_flush_denormal
// holds for the calling thread alone, and a row must not depend on which one takes it.
#pragma once

#include <cfenv>

namespace trb::cpu {

class DefaultFloats {
 public:
  DefaultFloats() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { std::fesetenv(&before_); }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
  std::fenv_t before_;
};

}  // namespace trb::cpu
