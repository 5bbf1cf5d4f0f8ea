// Sets rounding to nearest, and lets no subnormal number become 0, while an object lives. torch.set_flush_denormal
// holds for the calling thread only, and a row's result must not depend on the thread that solves it.
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
