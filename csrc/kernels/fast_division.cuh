// Division by a number that is the same for a whole launch, as a multiplication and a shift (Granlund and
// Montgomery, "Division by invariant integers using multiplication", 1994).
#pragma once

#include <cstdint>

#include "plain/half.h"

namespace cfmvit::kernels {

class Divider {
 public:
  // divisor in [0, 2**31); by 0, of an image without columns, nothing is ever divided
  explicit Divider(int64_t divisor) : divisor_(static_cast<uint32_t>(divisor > 0 ? divisor : 1)) {
    while ((int64_t{1} << shift_) < divisor) ++shift_;
    factor_ = static_cast<uint32_t>((((uint64_t{1} << shift_) - divisor_) << 32) / divisor_ + 1);
  }
  // n in [0, 2**31)
  CFMVIT_INLINE int quotient(int n) const {
    const auto high = static_cast<uint32_t>(uint64_t{static_cast<uint32_t>(n)} * factor_ >> 32);
    return static_cast<int>((high + static_cast<uint32_t>(n)) >> shift_);
  }
  // n becomes its remainder.
  CFMVIT_INLINE int split(int& n) const {
    const int whole = quotient(n);
    n -= whole * static_cast<int>(divisor_);
    return whole;
  }

 private:
  uint32_t divisor_, factor_, shift_ = 0;
};

}  // namespace cfmvit::kernels
