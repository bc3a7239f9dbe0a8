// The levels of boxes in a feature pyramid, a thread for each box.
#pragma once

#include "kernels/for_each.cuh"
#include "plain/regions_pyramid_levels.h"

namespace cfmvit::kernels {

template <typename T>
struct PyramidLevels {
  regions::Levels<T> level;
  int64_t* out;

  __device__ void operator()(int64_t i) const { out[i] = level(i); }
};

}  // namespace cfmvit::kernels
