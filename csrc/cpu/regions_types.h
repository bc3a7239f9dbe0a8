// The views that the loops over boxes take.
#pragma once

#include "cpu/regions_taps.h"
#include "plain/half.h"

namespace cfmvit::regions {

struct Strides {
  int64_t row, pixel, channel;
};

template <typename T, typename S>
struct Map {  // one image of one level
  S* data;
  int64_t height, width;
  Strides stride;
  const T* scale;  // (height * width,) factor of each pixel, or null
};

// Per-box results or their gradients: element (box, bin, channel).
template <typename S>
struct Bins {
  S* data;
  int64_t y, x;  // bins
  int64_t box_stride, bin_stride, channel_stride;
};

}  // namespace cfmvit::regions
