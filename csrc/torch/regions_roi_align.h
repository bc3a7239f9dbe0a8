// RoIAlign as ops: the checks and the results' layout, the same for every backend.
#pragma once

#include <array>

#include "plain/regions_axis.h"
#include "torch/regions_checks.h"
#include "torch/registration.h"

namespace cfmvit {

namespace regions {
// The maps of one level of a pyramid, (batch, channels, height, width); scale: pixels per unit of the boxes.
struct Size {
  int64_t batch, channels, height, width;
  double scale;
};
}  // namespace regions

// Where channels are neighbours in memory a result keeps them so, as PyTorch's operators do.
inline bool is_channels_last(const Tensor& map) { return map.stride(1) == 1 && !map.is_contiguous(); }

inline Tensor empty_map(const Tensor& like, const std::array<int64_t, 4>& size, bool channels_last) {
  product(size);
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                            : torch::headeronly::MemoryFormat::Contiguous);
}

// Backend has
//   forward(op, features, rois, levels, sizes, sampling, out), and
//   backward(op, grad, rois, levels, sizes, sampling, maps),
// which write all of `out` (R, C, P, Q) and of `maps`; rois (R, 5) and levels (R,) int64, or none where there
// is one level, are contiguous.
template <typename Backend>
struct AlignOps {
  using Sizes = std::vector<regions::Size>;

  static Tensor roi_align(Tensor input, Tensor rois, double spatial_scale, int64_t pooled_height,
                          int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
    check_map("roi_align", "input", input);
    return align("roi_align", {input}, rois, std::nullopt, {spatial_scale},
                 {pooled_height, pooled_width, sampling_ratio, aligned, false});
  }

  static Tensor roi_align_backward(Tensor grad, Tensor rois, double spatial_scale, int64_t batch,
                                   int64_t channels, int64_t height, int64_t width, int64_t sampling_ratio,
                                   bool aligned, bool channels_last) {
    check_dim("roi_align_backward", "grad", grad, 4);
    return align_backward("roi_align_backward", grad, rois, std::nullopt,
                          {{batch, channels, height, width, spatial_scale}},
                          {grad.size(2), grad.size(3), sampling_ratio, aligned, false}, channels_last)[0];
  }

  static Tensor multilevel_roi_align(std::vector<Tensor> features, Tensor rois, Tensor levels,
                                     std::vector<double> scales, int64_t pooled_height, int64_t pooled_width,
                                     int64_t sampling_ratio, bool aligned) {
    check_levels("multilevel_roi_align", features.size(), scales.size(), levels, rois);
    return align("multilevel_roi_align", features, rois, levels, scales,
                 {pooled_height, pooled_width, sampling_ratio, aligned, false});
  }

  static std::vector<Tensor> multilevel_roi_align_backward(Tensor grad, Tensor rois, Tensor levels,
                                                           std::vector<double> scales, int64_t batch,
                                                           int64_t channels, std::vector<int64_t> heights,
                                                           std::vector<int64_t> widths,
                                                           int64_t sampling_ratio, bool aligned,
                                                           bool channels_last) {
    const char* op = "multilevel_roi_align_backward";
    check_dim(op, "grad", grad, 4);
    check_levels(op, heights.size(), scales.size(), levels, rois);
    CFMVIT_CHECK(widths.size() == heights.size(), op, ": widths must have one number for each level");
    Sizes sizes;
    for (size_t i = 0; i < scales.size(); ++i)
      sizes.push_back({batch, channels, heights[i], widths[i], scales[i]});
    return align_backward(op, grad, rois, levels, sizes,
                          {grad.size(2), grad.size(3), sampling_ratio, aligned, false}, channels_last);
  }

 private:
  static std::optional<Tensor> contiguous(const std::optional<Tensor>& x) {
    return x ? std::optional(dense(*x)) : std::nullopt;
  }

  static Tensor align(const char* op, const std::vector<Tensor>& features, const Tensor& rois,
                      const std::optional<Tensor>& levels, const std::vector<double>& scales,
                      const regions::Sampling& sampling) {
    Sizes sizes;
    for (size_t i = 0; i < features.size(); ++i) {
      const Tensor& map = features[i];
      check_map(op, "features", map);
      check_type(op, "features", map, features[0]);
      CFMVIT_CHECK(map.size(0) == features[0].size(0) && map.size(1) == features[0].size(1), op,
                   ": features must have equal batch and channels on every level");
      CFMVIT_CHECK(map.device() == features[0].device(), op, ": features must be on one device");
      sizes.push_back({map.size(0), map.size(1), map.size(2), map.size(3), scales[i]});
    }
    check_rois(op, rois, features[0]);
    check_sampling(op, sampling.bins_y, sampling.bins_x, sampling.ratio, 0);
    const Tensor out =
        empty_map(features[0], {rois.size(0), sizes[0].channels, sampling.bins_y, sampling.bins_x},
                  is_channels_last(features[0]));
    Backend::forward(op, features, dense(rois), contiguous(levels), sizes, sampling, out);
    return out;
  }

  static std::vector<Tensor> align_backward(const char* op, const Tensor& grad, const Tensor& rois,
                                            const std::optional<Tensor>& levels, const Sizes& sizes,
                                            const regions::Sampling& sampling, bool channels_last) {
    check_rois(op, rois, grad);
    check_bins(op, grad, rois, sizes[0].channels);
    check_sampling(op, sampling.bins_y, sampling.bins_x, sampling.ratio, 0);
    std::vector<Tensor> maps;
    for (const regions::Size& size : sizes) {
      CFMVIT_CHECK(size.batch >= 0 && size.height > 0 && size.width > 0, op, ": the maps must not be empty");
      maps.push_back(empty_map(grad, {size.batch, size.channels, size.height, size.width}, channels_last));
    }
    Backend::backward(op, grad, dense(rois), contiguous(levels), sizes, sampling, maps);
    return maps;
  }
};

// Registers the four ops of a backend for a dispatch key.
#define CFMVIT_REGISTER_ALIGN(key, Backend)                                             \
  STABLE_TORCH_LIBRARY_IMPL(cfmvit, key, m) {                                           \
    using Ops = ::cfmvit::AlignOps<Backend>;                                            \
    CFMVIT_IMPL(m, roi_align, &Ops::roi_align);                                         \
    CFMVIT_IMPL(m, roi_align_backward, &Ops::roi_align_backward);                       \
    CFMVIT_IMPL(m, multilevel_roi_align, &Ops::multilevel_roi_align);                   \
    CFMVIT_IMPL(m, multilevel_roi_align_backward, &Ops::multilevel_roi_align_backward); \
  }

}  // namespace cfmvit
