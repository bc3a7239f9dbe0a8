// The mean over RoIAlign's bins of a map of tokens, on the CPU.
#include "cpu/regions_work_items.h"
#include "torch/dispatch.h"
#include "torch/registration.h"

namespace cfmvit {
namespace {

namespace r = regions;

// 1 / norm of each token of the grid, (B, h * w).
template <typename T, typename S>
std::vector<T> inverse_norms(const Tensor& tokens, int64_t prefix) {
  const int64_t batch = tokens.size(0), grid = tokens.size(1) - prefix;
  auto inverse = filled<T>({batch, grid}, T(0));
  parallel(batch * grid, tokens.size(2), [&](int64_t i) {
    inverse[i] = r::inverse_norm<T, S>(
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
  check_pool(op, tokens, rois, grid_height, grid_width, pooled_height, pooled_width, sampling_ratio,
             num_prefix_tokens);
  const Tensor boxes = dense(rois);
  const Tensor out = like(tokens, {rois.size(0), tokens.size(2)});
  const std::vector<r::Size> sizes{{tokens.size(0), tokens.size(2), grid_height, grid_width, spatial_scale}};
  const r::Sampling sampling{pooled_height, pooled_width, sampling_ratio, aligned, true};
  dispatch_floating(op, tokens.scalar_type(), [&]<typename S>(S) {
    using T = acc_t<S>;
    const auto scale = normalize ? inverse_norms<T, S>(tokens, num_prefix_tokens) : std::vector<T>();
    const auto maps = token_maps<T, const S>(tokens, num_prefix_tokens, grid_height, grid_width,
                                             normalize ? scale.data() : nullptr);
    r::forward<T, S>(r::Boxes<T>(op, boxes, nullptr, sizes, sampling, false), maps, tokens.size(2),
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
  check_pool_backward(op, grad, rois, tokens, batch, num_tokens, grid_height, grid_width, pooled_height,
                      pooled_width, sampling_ratio, num_prefix_tokens);
  const int64_t channels = grad.size(1), prefix = num_prefix_tokens;
  const Tensor boxes = dense(rois);
  const Tensor out = like(grad, {batch, num_tokens, channels});
  for (int64_t image = 0; image < batch && prefix > 0; ++image) {
    Tensor tokens_of_image = torch::stable::select(out, 0, image);
    Tensor first = torch::stable::narrow(tokens_of_image, 0, 0, prefix);
    torch::stable::zero_(first);
  }
  const std::vector<r::Size> sizes{{batch, channels, grid_height, grid_width, spatial_scale}};
  const r::Sampling sampling{pooled_height, pooled_width, sampling_ratio, aligned, true};
  dispatch_floating(op, grad.scalar_type(), [&]<typename S>(S) {
    using T = acc_t<S>;
    const r::Boxes<T> by_map(op, boxes, nullptr, sizes, sampling, true);
    const auto bins = pooled_bins<const S>(grad);
    const auto write = [&]<typename G>(const Tensor& target, G) {
      r::backward<T, G, S>(by_map, token_maps<T, G>(target, prefix, grid_height, grid_width, nullptr),
                           channels, bins);
    };
    if (!tokens.has_value()) return write(out, S{});
    // With u = F / |F| and g the gradient of u, that of F is (g - u <u, g>) / |F|: all channels of g at once.
    const Tensor whole =
        std::is_same_v<S, T> ? out : like(grad, {batch, num_tokens, channels}, ScalarType::Float);
    write(whole, T{});
    const int64_t grid = grid_height * grid_width;
    parallel(batch * grid, channels, [&](int64_t i) {
      const int64_t image = i / grid, pixel = prefix + i % grid, at = (image * num_tokens + pixel) * channels;
      r::unnormalize<T, S>(data<const S>(*tokens) + image * tokens->stride(0) + pixel * tokens->stride(1),
                           tokens->stride(2), channels, data<const T>(whole) + at, data<S>(out) + at);
    });
  });
  return out;
}

}  // namespace
}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  CFMVIT_IMPL(m, pool_regions, &cfmvit::pool_regions_cpu);
  CFMVIT_IMPL(m, pool_regions_backward, &cfmvit::pool_regions_backward_cpu);
}
