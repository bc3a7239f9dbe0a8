// RoIAlign, on one map or a pyramid, and its mean over tokens, on the CPU.
//
// Deterministic for any number of threads: every element of a result belongs to one job, which takes boxes in
// their order; jobs may be cut differently, sums are not.
#include <array>
#include <cmath>

#include "../dispatch.h"
#include "../regions_checks.h"
#include "regions_loops.h"

namespace cfmvit {
namespace {

namespace r = regions;

constexpr int64_t kSlabBytes = int64_t{1} << 19;  // rows of a gradient that stay in a core's L2

struct Level {
  int64_t batch, channels, height, width;
  double scale;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename Task>
void for_ranges(int64_t tasks,
                const Task& task) {  // task(begin, end), so that it can keep scratch memory in between
  if (tasks > 0) torch::stable::parallel_for(0, tasks, 1, task);
}

// The matrices of all boxes, grouped by map. Map number: level * batch + image.
template <typename T>
class Boxes {
 public:
  Boxes(const char* op, const Tensor& rois, const int64_t* level, const std::vector<Level>& levels,
        const r::Sampling& sampling, bool transposed)
      : maps_(static_cast<int64_t>(levels.size()) * levels[0].batch) {
    rois.scalar_type() == ScalarType::Double ? build(op, static_cast<const double*>(rois.data_ptr()),
                                                     rois.size(0), level, levels, sampling, transposed)
                                             : build(op, static_cast<const float*>(rois.data_ptr()),
                                                     rois.size(0), level, levels, sampling, transposed);
  }

  int64_t maps() const { return maps_; }
  const r::Box<T>* of_map(int64_t map) const { return boxes_.data() + begin_[map]; }
  int64_t count(int64_t map) const { return begin_[map + 1] - begin_[map]; }

 private:
  template <typename Coordinate>
  void build(const char* op, const Coordinate* rois, int64_t count, const int64_t* level,
             const std::vector<Level>& levels, const r::Sampling& sampling, bool transposed) {
    const int64_t batch = levels[0].batch;
    std::vector<int64_t> map(count);
    begin_.assign(maps_ + 1, 0);
    for (int64_t i = 0; i < count; ++i) {
      const Coordinate image = rois[5 * i];
      CFMVIT_CHECK(image >= 0 && image < static_cast<Coordinate>(batch), op,
                   ": boxes must have an image number in [0, ", batch, ") first, got ", image);
      const int64_t of = level == nullptr ? 0 : level[i];
      CFMVIT_CHECK(of >= 0 && of < static_cast<int64_t>(levels.size()), op, ": levels must be in [0, ",
                   levels.size(), "), got ", of);
      map[i] = of * batch + static_cast<int64_t>(image);
      ++begin_[map[i] + 1];
    }
    for (int64_t i = 0; i < maps_; ++i) begin_[i + 1] += begin_[i];

    tables_.resize(ceil_div(count, r::kBoxesPerTable));
    for_ranges(static_cast<int64_t>(tables_.size()), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t last = std::min(count, (t + 1) * r::kBoxesPerTable);
        for (int64_t i = t * r::kBoxesPerTable; i < last; ++i) {
          const Level& on = levels[map[i] / batch];
          tables_[t].add(rois + 5 * i, static_cast<Coordinate>(on.scale), on.height, on.width, sampling,
                         transposed);
        }
      }
    });
    boxes_.resize(count);
    std::vector<int64_t> next(begin_.begin(), begin_.end() - 1);
    for (int64_t i = 0; i < count; ++i) {
      boxes_[next[map[i]]++] = tables_[i / r::kBoxesPerTable].box(i % r::kBoxesPerTable, i);
    }
  }

  int64_t maps_;
  std::vector<int64_t> begin_;  // (maps + 1,)
  std::vector<r::Table<T>> tables_;
  std::vector<r::Box<T>> boxes_;
};

// Blocks of channels: full ones, then what is left over.
template <typename T>
struct Blocks {
  int64_t channels;
  int64_t count() const { return ceil_div(channels, r::kBlock<T>); }
  int64_t first(int64_t i) const { return i * r::kBlock<T>; }
  int64_t size(int64_t i) const { return std::min(r::kBlock<T>, channels - first(i)); }
};

template <typename T, typename S>
void forward(const Boxes<T>& boxes, const std::vector<r::Map<T, const S>>& maps, int64_t channels,
             const r::Bins<S>& out) {
  const Blocks<T> blocks{channels};
  // Where maps and blocks are fewer than threads, the boxes of a map are shared out as well.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = ceil_div(2 * threads, std::max<int64_t>(boxes.maps() * blocks.count(), 1));
  for_ranges(boxes.maps() * parts * blocks.count(), [&](int64_t begin, int64_t end) {
    r::Scratch<T> scratch;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks.count(), part = i / blocks.count() % parts,
                    map = i / blocks.count() / parts;
      const int64_t first = boxes.count(map) * part / parts, last = boxes.count(map) * (part + 1) / parts;
      if (first == last) continue;
      r::forward<T, S>(maps[map], out,
                       {boxes.of_map(map) + first, last - first, blocks.first(block), blocks.size(block)},
                       scratch);
    }
  });
}

// Writes all of every map.
template <typename T, typename S, typename G>
void backward(const Boxes<T>& boxes, const std::vector<r::Map<T, S>>& maps, int64_t channels,
              const r::Bins<const G>& grad) {
  const Blocks<T> blocks{channels};
  struct Band {
    int64_t map, begin, end;
  };
  std::vector<Band> bands;
  for (int64_t map = 0; map < boxes.maps(); ++map) {
    const auto row_bytes = maps[map].width * r::kBlock<T> * static_cast<int64_t>(sizeof(T));
    const int64_t rows = std::max<int64_t>(1, kSlabBytes / row_bytes);
    for (int64_t y = 0; y < maps[map].height; y += rows)
      bands.push_back({map, y, std::min(y + rows, maps[map].height)});
  }
  for_ranges(static_cast<int64_t>(bands.size()) * blocks.count(), [&](int64_t begin, int64_t end) {
    r::Scratch<T> scratch;
    for (int64_t i = begin; i < end; ++i) {
      const Band& band = bands[i % bands.size()];
      const int64_t block = i / static_cast<int64_t>(bands.size());
      r::backward<T, S, G>(
          grad, maps[band.map], band.begin, band.end,
          {boxes.of_map(band.map), boxes.count(band.map), blocks.first(block), blocks.size(block)}, scratch);
    }
  });
}

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
    forward<T, S>(Boxes<T>(op, boxes, level_data(levels), sizes, sampling, false), maps, out.size(1),
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
    backward<T, S, S>(Boxes<T>(op, boxes, level_data(levels), sizes, sampling, true), maps, grad.size(1),
                      bins_of<const S>(flat));
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

// 1 / length of each token of the grid, (B, h * w).
template <typename T, typename S>
std::vector<T> inverse_lengths(const Tensor& tokens, int64_t prefix) {
  const int64_t batch = tokens.size(0), grid = tokens.size(1) - prefix;
  std::vector<T> inverse(batch * grid);
  parallel(batch * grid, tokens.size(2), [&](int64_t i) {
    inverse[i] = r::inverse_length<T, S>(
        data<const S>(tokens) + i / grid * tokens.stride(0) + (prefix + i % grid) * tokens.stride(1),
        tokens.stride(2), tokens.size(2));
  });
  return inverse;
}

template <typename T, typename S>
std::vector<r::Map<T, S>> token_maps(const Tensor& tokens, int64_t prefix, int64_t height, int64_t width,
                                     const T* scale) {
  std::vector<r::Map<T, S>> maps;
  for (int64_t image = 0; image < tokens.size(0); ++image) {
    S* first = data<std::remove_const_t<S>>(tokens) + image * tokens.stride(0) + prefix * tokens.stride(1);
    maps.push_back({first,
                    height,
                    width,
                    {width * tokens.stride(1), tokens.stride(1), tokens.stride(2)},
                    scale == nullptr ? nullptr : scale + image * height * width});
  }
  return maps;
}

template <typename S>
r::Bins<S> pooled_bins(const Tensor& pooled) {
  return {data<std::remove_const_t<S>>(pooled), 1, 1, pooled.stride(0), 1, pooled.stride(1)};
}

Tensor pool_regions_cpu(Tensor tokens, Tensor rois, int64_t grid_height, int64_t grid_width,
                        double spatial_scale, int64_t pooled_height, int64_t pooled_width,
                        int64_t sampling_ratio, bool aligned, int64_t num_prefix_tokens, bool normalize) {
  const char* op = "pool_regions";
  CFMVIT_CHECK(tokens.dim() == 3, op, ": tokens must have 3 dimensions, got ", tokens.dim());
  check_rois(op, rois, tokens);
  check_grid(op, tokens.size(1), grid_height, grid_width, num_prefix_tokens);
  check_sampling(op, pooled_height, pooled_width, sampling_ratio);
  const Tensor boxes = torch::stable::contiguous(rois);
  const Tensor out = like(tokens, {rois.size(0), tokens.size(2)});
  const std::vector<Level> sizes{{tokens.size(0), tokens.size(2), grid_height, grid_width, spatial_scale}};
  const r::Sampling sampling{pooled_height, pooled_width, sampling_ratio, aligned, true};
  dispatch_floating(op, tokens.scalar_type(), [&]<typename S>(S) {
    using T = Sum<S>;
    const auto scale = normalize ? inverse_lengths<T, S>(tokens, num_prefix_tokens) : std::vector<T>();
    const auto maps = token_maps<T, const S>(tokens, num_prefix_tokens, grid_height, grid_width,
                                             normalize ? scale.data() : nullptr);
    forward<T, S>(Boxes<T>(op, boxes, nullptr, sizes, sampling, false), maps, tokens.size(2),
                  pooled_bins<S>(out));
  });
  return out;
}

// grad (R, C) -> (B, N, C). tokens: given where they were normalised, whose gradient depends on them.
Tensor pool_regions_backward_cpu(Tensor grad, Tensor rois, std::optional<Tensor> tokens, int64_t batch,
                                 int64_t num_tokens, int64_t grid_height, int64_t grid_width,
                                 double spatial_scale, int64_t pooled_height, int64_t pooled_width,
                                 int64_t sampling_ratio, bool aligned, int64_t num_prefix_tokens) {
  const char* op = "pool_regions_backward";
  check_rois(op, rois, grad);
  CFMVIT_CHECK(grad.dim() == 2 && grad.size(0) == rois.size(0), op, ": grad must have shape (", rois.size(0),
               ", C), got ", grad.dim(), " dimensions and ", grad.numel(), " entries");
  check_grid(op, num_tokens, grid_height, grid_width, num_prefix_tokens);
  check_sampling(op, pooled_height, pooled_width, sampling_ratio);
  const int64_t channels = grad.size(1), prefix = num_prefix_tokens;
  if (tokens) {
    check_shape(op, "tokens", *tokens, {batch, num_tokens, channels});
    check_type(op, "tokens", *tokens, grad);
  }
  const Tensor boxes = torch::stable::contiguous(rois);
  const Tensor out = like(grad, {batch, num_tokens, channels});
  for (int64_t image = 0; image < batch && prefix > 0; ++image) {
    Tensor tokens_of_image = torch::stable::select(out, 0, image);
    Tensor first = torch::stable::narrow(tokens_of_image, 0, 0, prefix);
    torch::stable::zero_(first);
  }
  const std::vector<Level> sizes{{batch, channels, grid_height, grid_width, spatial_scale}};
  const r::Sampling sampling{pooled_height, pooled_width, sampling_ratio, aligned, true};
  dispatch_floating(op, grad.scalar_type(), [&]<typename S>(S) {
    using T = Sum<S>;
    const Boxes<T> by_map(op, boxes, nullptr, sizes, sampling, true);
    const auto bins = pooled_bins<const S>(grad);
    const auto write = [&]<typename G>(const Tensor& target, G) {
      backward<T, G, S>(by_map, token_maps<T, G>(target, prefix, grid_height, grid_width, nullptr), channels,
                        bins);
    };
    if (!tokens.has_value()) return write(out, S{});
    // With u = F / |F| and g the gradient of u, that of F is (g - u <u, g>) / |F|: it takes all channels of g
    // at once.
    const Tensor whole =
        std::is_same_v<S, T> ? out : like(grad, {batch, num_tokens, channels}, ScalarType::Float);
    write(whole, T{});
    const int64_t grid = grid_height * grid_width;
    parallel(batch * grid, channels, [&](int64_t i) {
      const int64_t image = i / grid, place = prefix + i % grid, at = (image * num_tokens + place) * channels;
      r::unnormalize<T, S>(data<const S>(*tokens) + image * tokens->stride(0) + place * tokens->stride(1),
                           tokens->stride(2), channels, data<const T>(whole) + at, data<S>(out) + at);
    });
  });
  return out;
}

}  // namespace
}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&cfmvit::roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&cfmvit::roi_align_backward_cpu));
  m.impl("multilevel_roi_align", TORCH_BOX(&cfmvit::multilevel_roi_align_cpu));
  m.impl("multilevel_roi_align_backward", TORCH_BOX(&cfmvit::multilevel_roi_align_backward_cpu));
  m.impl("pool_regions", TORCH_BOX(&cfmvit::pool_regions_cpu));
  m.impl("pool_regions_backward", TORCH_BOX(&cfmvit::pool_regions_backward_cpu));
}
