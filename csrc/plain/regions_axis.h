// Where the samples of a box lie along one axis of a map, for every backend.
//
// A RoIAlign sample is bilinear: its weight is a product of one factor for its row and one for its column,
// and so are the rule for samples outside the map and the number of samples of a bin. Hence each axis of a
// box is a small sparse matrix, bins x pixels, with the weights of all samples that share a pixel merged, and
// out[p, q] = sum_y wy[p, y] * sum_x wx[q, x] * F[y, x].
#pragma once

#include <cmath>

#include "plain/half.h"
#include "plain/regions_limits.h"

namespace cfmvit::regions {

struct Sampling {
  int64_t bins_y, bins_x;
  int64_t ratio;  // samples along each side of a bin; not positive: ceil(side in pixels)
  bool aligned;
  bool merge;  // one bin per axis: the mean of them all

  CFMVIT_INLINE int64_t bins(int axis) const { return axis == 0 ? bins_y : bins_x; }
};

// A product that no compiler fuses with an addition: that would move samples across the borders that
// torchvision sees. (The host's compiler is told so by its options.)
CFMVIT_INLINE float unfused_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
CFMVIT_INLINE double unfused_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

template <typename Real>
CFMVIT_INLINE bool finite(Real x) {
  return x - x == Real(0);
}

// The samples of all bins; the order of operations on coordinates is torchvision's.
template <typename Coordinate>
struct Samples {
  Coordinate start, bin_size, grid;
  int64_t count;  // of a bin; none for a box that can't be read
  double share;   // weight of a sample

  // Grows (for an inverted box: falls) with i, rounding included.
  CFMVIT_INLINE Coordinate position(int64_t bin, int64_t i) const {
    return start + unfused_product(static_cast<Coordinate>(bin), bin_size) +
           unfused_product(static_cast<Coordinate>(i) + Coordinate(0.5), bin_size) / grid;
  }
};

template <typename Coordinate>
CFMVIT_INLINE bool inside(Coordinate at, int64_t length) {
  return at >= Coordinate(-1) && at <= static_cast<Coordinate>(length);
}

// A sample at a position inside the map has weight 1 - fraction at `pixel` and fraction at the next.
struct Bilinear {
  int64_t pixel;
  double fraction;
};
template <typename Coordinate>
CFMVIT_INLINE Bilinear bilinear(Coordinate at, int64_t length) {
  if (at < Coordinate(0)) at = Coordinate(0);
  const int64_t floor = static_cast<int64_t>(at);
  if (floor >= length - 1) return {length - 1, 0.0};
  return {floor, double(at - static_cast<Coordinate>(floor))};
}

// The first sample of a bin that is not before the map, seen in the direction in which positions run: boxes
// may begin far outside.
template <typename Coordinate>
CFMVIT_INLINE int64_t first_inside(const Samples<Coordinate>& samples, int64_t bin, int64_t length) {
  const bool falls = samples.bin_size < Coordinate(0);
  const auto before = [&](int64_t i) {
    const Coordinate at = samples.position(bin, i);
    return falls ? at > static_cast<Coordinate>(length) : at < Coordinate(-1);
  };
  if (samples.count == 0 || !before(0)) return 0;
  int64_t first = 1;
  for (int64_t end = samples.count; first < end;) {
    const int64_t middle = (first + end) / 2;
    before(middle) ? first = middle + 1 : end = middle;
  }
  return first;
}

// roi: image number, x1, y1, x2, y2. axis: 0 for y, 1 for x.
template <typename Coordinate>
CFMVIT_INLINE Samples<Coordinate> samples_of(const Coordinate* roi, Coordinate scale,
                                             const Sampling& sampling, int axis) {
  const Coordinate shift = sampling.aligned ? Coordinate(0.5) : Coordinate(0);
  const int first = 2 - axis;
  const Coordinate start = unfused_product(roi[first], scale) - shift,
                   end = unfused_product(roi[first + 2], scale) - shift;
  Coordinate size = end - start;
  bool readable = finite(size);
  for (int i = 1; i < 5; ++i) readable = readable && finite(unfused_product(roi[i], scale) - shift);
  if (sampling.merge) readable = readable && roi[3] > roi[1] && roi[4] > roi[2];

  if (!sampling.aligned && size < Coordinate(1)) size = Coordinate(1);
  const int64_t bins = sampling.bins(axis);
  Samples<Coordinate> out{start, size / static_cast<Coordinate>(bins), 0, 0, 0};
  out.grid = sampling.ratio > 0 ? static_cast<Coordinate>(sampling.ratio) : std::ceil(out.bin_size);
  if (readable && out.grid > Coordinate(0) && out.grid <= Coordinate(kMaxSamples)) {
    out.count = static_cast<int64_t>(out.grid);
    out.share = 1.0 / (double(out.count) * (sampling.merge ? double(bins) : 1.0));
  }
  return out;
}

}  // namespace cfmvit::regions
