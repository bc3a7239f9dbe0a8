// Integer indices of either width, (B, K) of any strides.
#pragma once

#include "plain/half.h"

namespace cfmvit {

struct Index {
  const void* data;
  bool wide;  // int64
  int64_t row, column;

  CFMVIT_INLINE int64_t operator()(int64_t b, int64_t j) const {
    const int64_t at = b * row + j * column;
    return wide ? static_cast<const int64_t*>(data)[at] : static_cast<const int32_t*>(data)[at];
  }
};

}  // namespace cfmvit
