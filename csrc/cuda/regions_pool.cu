// The mean over RoIAlign's bins of a map of tokens, on a GPU.
#include "cuda/regions_views.h"
#include "kernels/regions_matmul.cuh"
#include "kernels/regions_norms.cuh"
#include "torch/dispatch.h"
#include "torch/registration.h"
#include "torch/tensor_views.h"

namespace cfmvit {
namespace {

// The grid of tokens (B, N, C) as one level.
template <typename S>
kernels::Pyramid<S> grid_of(const char* op, const Tensor& tokens, int64_t prefix, const regions::Size& size) {
  kernels::Pyramid<S> out{};
  out.levels = 1;
  out.images = size.batch;
  const int64_t token = tokens.stride(1);
  out.level[0] = level_of(op, data<S>(tokens) + prefix * token, size, tokens.stride(0), size.width * token,
                          token, tokens.stride(2));
  return out;
}

template <typename S>
kernels::Bins<S> pooled_bins(const Tensor& pooled) {  // (R, C)
  return {data<S>(pooled), pooled.stride(0), 0, 0, pooled.stride(1)};
}

}  // namespace

Tensor pool_regions_cuda(Tensor tokens, Tensor rois, int64_t grid_height, int64_t grid_width,
                         double spatial_scale, int64_t pooled_height, int64_t pooled_width,
                         int64_t sampling_ratio, bool aligned, int64_t num_prefix_tokens, bool normalize) {
  const char* op = "pool_regions";
  check_pool(op, tokens, rois, grid_height, grid_width, pooled_height, pooled_width, sampling_ratio,
             num_prefix_tokens);
  const regions::Size size{tokens.size(0), tokens.size(2), grid_height, grid_width, spatial_scale};
  const regions::Sampling sampling{pooled_height, pooled_width, sampling_ratio, aligned, true};
  check_counts(op, rois.size(0), size.channels, {size}, sampling);
  const Tensor boxes = dense(rois), out = like(tokens, {rois.size(0), size.channels});
  if (out.numel() == 0) return out;
  dispatch_floating(op, tokens.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto maps = grid_of<const S>(op, tokens, num_prefix_tokens, size);
    const int64_t pixels = size.batch * grid_height * grid_width;
    kernels::Tables<acc_t<S>> tables;
    acc_t<S>* scale = nullptr;
    kernels::MatmulBoxes products;
    const Tensor memory = carve_workspace(tokens, [&](kernels::Workspace& workspace) {
      tables = carve_tables<acc_t<S>>(workspace, rois.size(0), {size}, sampling);
      if (normalize) scale = workspace.take<acc_t<S>>(pixels);
      products = kernels::matmul_boxes_of(workspace, rois.size(0), size.batch);
    });
    on_device(tokens, [&](cudaStream_t stream) {
      with_boxes(boxes, std::nullopt,
                 [&](auto views) { kernels::make_tables(views, maps, sampling, tables, stream); });
      if (normalize) {
        kernels::for_each_warp(pixels, kernels::InverseNorms<S>{maps.level[0], scale, size.channels}, stream);
      }
      kernels::pool<S>(
          {maps, scale, tables, INT64_MAX, pooled_bins<S>(out), static_cast<int32_t>(size.channels)},
          products, rois.size(0), stream);
    });
  });
  return out;
}

// grad (R, C) -> (B, N, C). tokens: given where they were normalised, whose gradient depends on them.
Tensor pool_regions_backward_cuda(Tensor grad, Tensor rois, std::optional<Tensor> tokens, int64_t batch,
                                  int64_t num_tokens, int64_t grid_height, int64_t grid_width,
                                  double spatial_scale, int64_t pooled_height, int64_t pooled_width,
                                  int64_t sampling_ratio, bool aligned, int64_t num_prefix_tokens) {
  const char* op = "pool_regions_backward";
  check_pool_backward(op, grad, rois, tokens, batch, num_tokens, grid_height, grid_width, pooled_height,
                      pooled_width, sampling_ratio, num_prefix_tokens);
  const regions::Size size{batch, grad.size(1), grid_height, grid_width, spatial_scale};
  const regions::Sampling sampling{pooled_height, pooled_width, sampling_ratio, aligned, true};
  check_counts(op, rois.size(0), size.channels, {size}, sampling);
  const Tensor boxes = dense(rois);
  Tensor out = like(grad, {batch, num_tokens, size.channels});
  if (out.numel() == 0) return out;
  Tensor prefix = torch::stable::narrow(out, 1, 0, num_prefix_tokens);
  if (num_prefix_tokens > 0) torch::stable::zero_(prefix);
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = acc_t<S>;
    const auto maps = grid_of<S>(op, out, num_prefix_tokens, size);
    kernels::Tables<T> tables;
    const auto bins = pooled_bins<const S>(grad);
    const auto channels = static_cast<int32_t>(size.channels);
    kernels::Readers readers;
    kernels::Pyramid<S> packed;
    const Tensor memory = carve_workspace(grad, [&](kernels::Workspace& workspace) {
      tables = carve_tables<T>(workspace, rois.size(0), {size}, sampling);
      readers = kernels::readers_of(workspace, rois.size(0), batch);
      packed = kernels::packed_for<S>(workspace, bins, rois.size(0), sampling, channels);
    });
    // The gradient through a token's normalisation needs all its channels.
    const Tensor unit =
        tokens ? like(grad, {batch, grid_height * grid_width, size.channels}, acc_type(grad)) : grad;
    on_device(grad, [&](cudaStream_t stream) {
      with_boxes(boxes, std::nullopt,
                 [&](auto views) { kernels::make_tables(views, maps, sampling, tables, stream); });
      kernels::find_readers(tables, rois.size(0), readers, stream);
      const auto scatter = [&](const auto& to) {
        kernels::scatter<S>(to, tables, readers, bins, packed, rois.size(0), channels, stream);
      };
      if (!tokens) return scatter(maps);
      scatter(grid_of<T>(op, unit, 0, size));
      const auto features = grid_of<const S>(op, *tokens, num_prefix_tokens, size);
      kernels::for_each_warp(
          batch * grid_height * grid_width,
          kernels::Unnormalize<S>{features.level[0], data<const T>(unit), maps.level[0], size.channels},
          stream);
    });
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) {
  CFMVIT_IMPL(m, pool_regions, &cfmvit::pool_regions_cuda);
  CFMVIT_IMPL(m, pool_regions_backward, &cfmvit::pool_regions_backward_cuda);
}
