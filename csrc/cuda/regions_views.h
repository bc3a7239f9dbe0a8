// Tensors as the region kernels take them.
#pragma once

#include "cuda/launch.h"
#include "kernels/regions_gather.cuh"
#include "kernels/regions_scatter.cuh"
#include "torch/regions_roi_align.h"

namespace cfmvit {

// A level of these strides.
template <typename S>
kernels::Level<S> level_of(const char* op, S* data, const regions::Size& size, int64_t image, int64_t row,
                           int64_t pixel, int64_t channel) {
  CFMVIT_CHECK(pixel <= INT32_MAX, op, ": features must have neighbours in a row of the map less than 2**31 ",
               "elements apart on a GPU, got ", pixel);
  return {data, size.height, size.width, image, row, static_cast<int32_t>(pixel), channel, size.scale};
}

// Levels (B, C, H, W).
template <typename S>
kernels::Pyramid<S> pyramid_of(const char* op, const std::vector<Tensor>& maps,
                               const std::vector<regions::Size>& sizes) {
  CFMVIT_CHECK(maps.size() <= kernels::kMostLevels, op, ": features must have at most ", kernels::kMostLevels,
               " levels on a GPU, got ", maps.size());
  kernels::Pyramid<S> out{};
  out.levels = static_cast<int>(maps.size());
  out.images = maps[0].size(0);
  for (int i = 0; i < out.levels; ++i) {
    const Tensor& map = maps[i];
    out.level[i] =
        level_of(op, data<S>(map), sizes[i], map.stride(0), map.stride(2), map.stride(3), map.stride(1));
  }
  return out;
}

// Calls run(Boxes<Coordinate>) for rois (R, 5) and levels (R,), contiguous.
template <typename Run>
void with_boxes(const Tensor& rois, const std::optional<Tensor>& levels, const Run& run) {
  const int64_t* const level = levels ? data<const int64_t>(*levels) : nullptr;
  rois.scalar_type() == ScalarType::Double
      ? run(kernels::Boxes<double>{data<const double>(rois), level, rois.size(0)})
      : run(kernels::Boxes<float>{data<const float>(rois), level, rois.size(0)});
}

// Memory for what carve(Workspace&) takes; it is called twice, to count and to carve.
template <typename Carve>
Tensor carve_workspace(const Tensor& like, const Carve& carve) {
  kernels::Workspace counted;
  carve(counted);
  const Tensor memory = torch::stable::new_empty(like, {counted.bytes()}, ScalarType::Byte);
  kernels::Workspace workspace(data<char>(memory));
  carve(workspace);
  return memory;
}

// Inside a box, a map's side and a bin row of all boxes, kernels count in 32 bits.
inline void check_counts(const char* op, int64_t boxes, int64_t channels,
                         const std::vector<regions::Size>& sizes, const regions::Sampling& sampling) {
  const auto small = [](double count) { return count <= INT32_MAX; };
  const double y = sampling.merge ? 1 : double(sampling.bins_y),
               x = sampling.merge ? 1 : double(sampling.bins_x);
  CFMVIT_CHECK(small(double(boxes) * y) && small(y * x * double(channels)), op, ": bins must be fewer than ",
               "2**31 a box with all channels, and in all boxes one above the other, got ", boxes, " boxes, ",
               channels, " channels, ", sampling.bins_y, " x ", sampling.bins_x, " bins");
  double rows = 0;
  for (const regions::Size& size : sizes) {
    rows +=
        double(size.batch) * double(size.height) * std::ceil(double(size.width) / kernels::kScatterAcross);
    CFMVIT_CHECK(small(double(size.height)) && small(double(size.width)) && small(rows), op,
                 ": maps must have fewer than 2**31 rows in all and pixels in a row, got ", size.batch, " x ",
                 size.height, " x ", size.width);
  }
}

// Tables for the boxes on the largest of the levels.
template <typename T>
kernels::Tables<T> carve_tables(kernels::Workspace& workspace, int64_t boxes,
                                const std::vector<regions::Size>& sizes, const regions::Sampling& sampling) {
  int64_t height = 0, width = 0;
  for (const regions::Size& size : sizes) {
    height = std::max(height, size.height);
    width = std::max(width, size.width);
  }
  return kernels::tables_of<T>(workspace, boxes, sampling, height, width);
}

}  // namespace cfmvit
