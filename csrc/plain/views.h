// Plain views of rows and of pixels, by pointer and strides.
#pragma once

#include "plain/half.h"

namespace cfmvit {

// Rows of a (B, N, D) tensor whose channels are neighbours.
template <typename S>
struct Rows {
  S* data;
  int64_t sample, token;

  CFMVIT_INLINE S* at(int64_t b, int64_t n) const { return data + b * sample + n * token; }
};

// (B, C, H, W), any strides.
template <typename S>
struct Pixels {
  S* data;
  int64_t image, channel, row, column;

  CFMVIT_INLINE S* at(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return data + b * image + c * channel + y * row + x * column;
  }
};

}  // namespace cfmvit
