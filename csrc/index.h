// Integer indices of either width, (B, K) of any strides. Knows nothing of torch.
#pragma once

#include <vector>

#include "half.h"

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

// Which entry names each of `places` in each row, -1 for none: with it tokens are read in the order in which
// they lie. place_of(b, j): the place that entry j of row b names.
template <typename PlaceOf>
std::vector<int64_t> entries_by_place(int64_t batch, int64_t places, int64_t entries,
                                      const PlaceOf& place_of) {
  std::vector<int64_t> found(batch * places, -1);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t j = 0; j < entries; ++j) found[b * places + place_of(b, j)] = j;
  }
  return found;
}

}  // namespace cfmvit
