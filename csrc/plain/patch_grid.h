// Patches of an image and the normalisation of its channels.
#pragma once

#include "plain/half.h"

namespace cfmvit {

struct PatchGrid {
  int64_t channels, rows, columns, patch;

  CFMVIT_INLINE int64_t count() const { return rows * columns; }
  CFMVIT_INLINE int64_t width() const { return channels * patch * patch; }
};

// What normalises a channel: (pixel / 255 if bytes - mean) / std.
struct Statistics {
  const double *mean, *std;  // (C,) or null
  bool bytes;

  // As one multiplication and one addition.
  CFMVIT_INLINE double scale(int64_t channel) const { return (bytes ? 1.0 / 255 : 1.0) / deviation(channel); }
  CFMVIT_INLINE double shift(int64_t channel) const {
    return mean ? -mean[channel] / deviation(channel) : 0.0;
  }

 private:
  CFMVIT_INLINE double deviation(int64_t channel) const { return std ? std[channel] : 1.0; }
};

}  // namespace cfmvit
