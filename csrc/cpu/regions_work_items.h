// Boxes grouped by the map that they lie on, and the work items that cover them.
//
// Deterministic for any number of threads: every element of a result belongs to one item, which takes boxes
// in their order; work items may be cut differently, sums are not.
#pragma once

#include "cpu/regions_types.h"
#include "torch/regions_roi_align.h"

namespace cfmvit::regions {

// The matrices of all boxes, grouped by map. Number of a map: level * batch + image.
template <typename T>
class Boxes {
 public:
  // rois (R, 5) float32 or float64, contiguous; level (R,) or null where there is one. `transposed`: for the
  // backward.
  Boxes(const char* op, const Tensor& rois, const int64_t* level, const std::vector<Size>& levels,
        const Sampling& sampling, bool transposed);

  const char* op() const { return op_; }
  int64_t maps() const { return maps_; }
  const Box<T>* of_map(int64_t map) const { return boxes_.data() + begin_[map]; }
  int64_t count(int64_t map) const { return begin_[map + 1] - begin_[map]; }
  // Pixels that the boxes read, over all of them.
  int64_t taps() const { return taps_; }

 private:
  template <typename Coordinate>
  void build(const Coordinate* rois, int64_t count, const int64_t* level, const std::vector<Size>& levels,
             const Sampling& sampling, bool transposed);

  const char* op_;
  int64_t maps_, taps_ = 0;
  std::vector<int64_t> begin_;  // (maps + 1,)
  std::vector<Table<T>> tables_;
  std::vector<Box<T>> boxes_;
};

// Writes the bins of every box. S: type of the features.
template <typename T, typename S>
void forward(const Boxes<T>& boxes, const std::vector<Map<T, const S>>& maps, int64_t channels,
             const Bins<S>& out);

// Writes all of every map from the gradients of the bins, whose type is G.
template <typename T, typename S, typename G>
void backward(const Boxes<T>& boxes, const std::vector<Map<T, S>>& maps, int64_t channels,
              const Bins<const G>& grad);

// 1 / norm of a token, with the bound of torch.nn.functional.normalize.
template <typename T, typename S>
T inverse_norm(const S* token, int64_t stride, int64_t channels);

// Gradient of a token (channels,) from that of the token normalised; `grad` and `out` may be the same.
template <typename T, typename S>
void unnormalize(const S* token, int64_t stride, int64_t channels, const T* grad, S* out);

}  // namespace cfmvit::regions
