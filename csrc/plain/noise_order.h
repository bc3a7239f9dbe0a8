// Noise as keys of its order, for drawing masks.
#pragma once

#include "plain/half.h"

namespace cfmvit {

// A float as an unsigned integer of the same order: the two zeros are equal, and NaN comes last.
CFMVIT_INLINE uint32_t ordered(float x) {
  const uint32_t bits = bits_of(x + 0.0f);
  return x != x ? UINT32_MAX : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
CFMVIT_INLINE uint64_t ordered(double x) {
  uint64_t bits;
  const double positive = x + 0.0;
  std::memcpy(&bits, &positive, sizeof bits);
  return x != x ? UINT64_MAX : bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}

}  // namespace cfmvit
