// Which level of a feature pyramid a box belongs to, for every backend.
#pragma once

#include <cmath>

#include "plain/regions_axis.h"

namespace cfmvit::regions {

// Boxes (R, 5) of `T`; levels count from the finest, whose stride is 2 ** finest.
template <typename T>
struct Levels {
  const T* rois;
  int64_t row;  // stride
  int64_t finest, count;
  T canonical_scale, canonical_level;

  CFMVIT_INLINE int64_t operator()(int64_t i) const {
    const T* box = rois + i * row + 1;
    const T area = unfused_product(box[2] - box[0], box[3] - box[1]);
    // 1e-6 as in torchvision, so that a box of exactly the canonical scale is not a rounding error below its
    // level.
    const T exact = canonical_level + std::log2(std::sqrt(area) / canonical_scale) + T(1e-6);
    const T level = std::floor(exact) - T(finest);
    return level >= T(count - 1) ? count - 1 : level > 0 ? static_cast<int64_t>(level) : 0;  // 0 for a NaN
  }
};

}  // namespace cfmvit::regions
