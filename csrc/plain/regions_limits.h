// What bounds the work on one box, for every backend.
#pragma once

#include <cstdint>

namespace cfmvit::regions {

// Samples along a side of a box (bins * sampling ratio), so that no argument but the tensors' sizes makes a
// call long. With adaptive sampling, which follows the box, along a side of a bin: a larger box gives zeros.
constexpr int64_t kMaxSamples = 65536;

}  // namespace cfmvit::regions
