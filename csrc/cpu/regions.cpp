// RoIAlign on the CPU, on one map or on a pyramid.
#include <array>

#include "../dispatch.h"
#include "regions_jobs.h"

namespace cfmvit {
namespace {

namespace r = regions;
using r::Level;

// Where channels are neighbours in memory a result keeps them so, as PyTorch's operators do.
bool is_channels_last(const Tensor& map) { return map.stride(1) == 1 && !map.is_contiguous(); }

Tensor empty_map(const Tensor& like, const std::array<int64_t, 4>& size, bool channels_last) {
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                            : torch::headeronly::MemoryFormat::Contiguous);
}

// (R, C, P, Q); a tensor whose P and Q can't be walked as one is copied.
template <typename S>
r::Bins<S> bins_of(const Tensor& x) {
  return {data<std::remove_const_t<S>>(x), x.size(2), x.size(3), x.stride(0), x.stride(3), x.stride(1)};
}

template <typename T, typename S>
void append_maps(const Tensor& map, std::vector<r::Map<T, S>>& maps) {
  for (int64_t image = 0; image < map.size(0); ++image) {
    maps.push_back({data<std::remove_const_t<S>>(map) + image * map.stride(0),
                    map.size(2),
                    map.size(3),
                    {map.stride(2), map.stride(3), map.stride(1)},
                    nullptr});
  }
}

const int64_t* level_data(const std::optional<Tensor>& levels) {
  return levels.has_value() ? data<const int64_t>(*levels) : nullptr;
}

// rois (R, 5), levels (R,) or none where there is one level -> (R, C, P, Q)
Tensor align(const char* op, const std::vector<Tensor>& features, const Tensor& rois,
             const std::optional<Tensor>& levels, const std::vector<double>& scales,
             const r::Sampling& sampling) {
  for (const Tensor& map : features) {
    check_map(op, "features", map);
    check_type(op, "features", map, features[0]);
    CFMVIT_CHECK(map.size(0) == features[0].size(0) && map.size(1) == features[0].size(1), op,
                 ": features must have equal batch and channels on every level");
  }
  check_rois(op, rois, features[0]);
  check_sampling(op, sampling.bins_y, sampling.bins_x, sampling.ratio);
  const Tensor boxes = torch::stable::contiguous(rois);
  const Tensor out =
      empty_map(features[0], {rois.size(0), features[0].size(1), sampling.bins_y, sampling.bins_x},
                is_channels_last(features[0]));
  dispatch_floating(op, features[0].scalar_type(), [&]<typename S>(S) {
    using T = Sum<S>;
    std::vector<Level> sizes;
    std::vector<r::Map<T, const S>> maps;
    for (size_t i = 0; i < features.size(); ++i) {
      sizes.push_back(
          {features[i].size(0), features[i].size(1), features[i].size(2), features[i].size(3), scales[i]});
      append_maps(features[i], maps);
    }
    r::forward<T, S>(r::Boxes<T>(op, boxes, level_data(levels), sizes, sampling, false), maps, out.size(1),
                     bins_of<S>(out));
  });
  return out;
}

// grad (R, C, P, Q) -> gradients of the maps
std::vector<Tensor> align_backward(const char* op, const Tensor& grad, const Tensor& rois,
                                   const std::optional<Tensor>& levels, const std::vector<Level>& sizes,
                                   const r::Sampling& sampling, bool channels_last) {
  check_rois(op, rois, grad);
  check_bins(op, grad, rois, sizes[0].channels);
  check_sampling(op, sampling.bins_y, sampling.bins_x, sampling.ratio);
  for (const Level& size : sizes) {
    CFMVIT_CHECK(size.batch >= 0 && size.height > 0 && size.width > 0, op, ": the maps must not be empty");
  }
  const Tensor boxes = torch::stable::contiguous(rois);
  const Tensor flat =
      grad.stride(2) == grad.stride(3) * grad.size(3) ? grad : torch::stable::contiguous(grad);
  std::vector<Tensor> out;
  for (const Level& size : sizes) {
    out.push_back(empty_map(grad, {size.batch, size.channels, size.height, size.width}, channels_last));
  }
  dispatch_floating(op, grad.scalar_type(), [&]<typename S>(S) {
    using T = Sum<S>;
    std::vector<r::Map<T, S>> maps;
    for (const Tensor& map : out) append_maps(map, maps);
    r::backward<T, S, S>(r::Boxes<T>(op, boxes, level_data(levels), sizes, sampling, true), maps,
                         grad.size(1), bins_of<const S>(flat));
  });
  return out;
}

Tensor roi_align_cpu(Tensor input, Tensor rois, double spatial_scale, int64_t pooled_height,
                     int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  check_map("roi_align", "input", input);
  return align("roi_align", {input}, rois, std::nullopt, {spatial_scale},
               {pooled_height, pooled_width, sampling_ratio, aligned, false});
}

Tensor roi_align_backward_cpu(Tensor grad, Tensor rois, double spatial_scale, int64_t batch, int64_t channels,
                              int64_t height, int64_t width, int64_t sampling_ratio, bool aligned,
                              bool channels_last) {
  check_map("roi_align_backward", "grad", grad);
  return align_backward("roi_align_backward", grad, rois, std::nullopt,
                        {{batch, channels, height, width, spatial_scale}},
                        {grad.size(2), grad.size(3), sampling_ratio, aligned, false}, channels_last)[0];
}

Tensor multilevel_roi_align_cpu(std::vector<Tensor> features, Tensor rois, Tensor levels,
                                std::vector<double> scales, int64_t pooled_height, int64_t pooled_width,
                                int64_t sampling_ratio, bool aligned) {
  check_levels("multilevel_roi_align", features.size(), scales.size(), levels, rois);
  return align("multilevel_roi_align", features, rois, torch::stable::contiguous(levels), scales,
               {pooled_height, pooled_width, sampling_ratio, aligned, false});
}

std::vector<Tensor> multilevel_roi_align_backward_cpu(Tensor grad, Tensor rois, Tensor levels,
                                                      std::vector<double> scales, int64_t batch,
                                                      int64_t channels, std::vector<int64_t> heights,
                                                      std::vector<int64_t> widths, int64_t sampling_ratio,
                                                      bool aligned, bool channels_last) {
  const char* op = "multilevel_roi_align_backward";
  check_map(op, "grad", grad);
  check_levels(op, heights.size(), scales.size(), levels, rois);
  CFMVIT_CHECK(widths.size() == heights.size(), op, ": widths must have one number for each level");
  std::vector<Level> sizes;
  for (size_t i = 0; i < scales.size(); ++i)
    sizes.push_back({batch, channels, heights[i], widths[i], scales[i]});
  return align_backward(op, grad, rois, torch::stable::contiguous(levels), sizes,
                        {grad.size(2), grad.size(3), sampling_ratio, aligned, false}, channels_last);
}

}  // namespace
}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&cfmvit::roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&cfmvit::roi_align_backward_cpu));
  m.impl("multilevel_roi_align", TORCH_BOX(&cfmvit::multilevel_roi_align_cpu));
  m.impl("multilevel_roi_align_backward", TORCH_BOX(&cfmvit::multilevel_roi_align_backward_cpu));
}
