// Cutting patches out of images on a GPU: checks, choice of dtypes, workspace, launches.
#include "cuda/launch.h"
#include "kernels/masking_patches.cuh"
#include "torch/dispatch.h"
#include "torch/masking_checks.h"
#include "torch/registration.h"
#include "torch/tensor_views.h"

namespace cfmvit {

Tensor gather_patches_cuda(Tensor images, std::optional<Tensor> index, int64_t patch_size,
                           std::optional<Tensor> mean, std::optional<Tensor> std, ScalarType dtype) {
  constexpr const char* op = "gather_patches";
  const PatchGrid grid = checked_grid(op, images, patch_size);
  const bool bytes = images.scalar_type() == ScalarType::Byte;
  mean = checked_statistic(op, "mean", mean, grid.channels);
  std = checked_statistic(op, "std", std, grid.channels);
  const Index at =
      index ? checked_index(op, "index", *index, images.size(0), grid.count()) : Index{nullptr, false, 0, 0};
  images = rows_of(images);
  const int64_t batch = images.size(0), kept = index ? index->size(1) : grid.count();
  const Tensor out = like(images, {batch, kept, grid.width()}, dtype);
  const auto from = [&](auto in) {
    dispatch_floating(op, dtype, [&](auto zero) {
      using In = decltype(in);
      using Out = decltype(zero);
      const kernels::GatherPatches<In, Out> gather{pixels_of<const In>(images),
                                                   at,
                                                   statistics_of(mean, std, bytes),
                                                   grid,
                                                   data<Out>(out),
                                                   batch,
                                                   kept};
      on_device(images, [&](cudaStream_t stream) { kernels::gather_patches(gather, stream); });
    });
  };
  bytes ? from(uint8_t{}) : dispatch_floating(op, images.scalar_type(), from);
  return out;
}

Tensor gather_patches_backward_cuda(Tensor grad, std::optional<Tensor> index, int64_t patch_size,
                                    std::optional<Tensor> std, int64_t channels, int64_t height,
                                    int64_t width) {
  constexpr const char* op = "gather_patches_backward";
  product({channels, height, width});
  const PatchGrid grid = checked_grid(op, channels, height, width, patch_size);
  check_patch_gradient(op, grad, index, grid);
  const int64_t batch = grad.size(0), kept = grad.size(1);
  const Tensor out = like(grad, {batch, channels, height, width});
  std = checked_statistic(op, "std", std, channels);
  const Index at =
      index ? checked_index(op, "index", *index, batch, grid.count()) : Index{nullptr, false, 0, 0};
  grad = dense(grad);
  const Tensor memory = workspace<kernels::InverseEntries>(grad, {index ? batch : 0, grid.count()});
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const kernels::Sources sources = kernels::one_source(at, kept);
    auto* inverse = index ? data<kernels::InverseEntries>(memory) : nullptr;
    const kernels::GatherPatchesBackward<S> backward{
        data<const S>(grad), sources, inverse, statistics_of(std::nullopt, std, false), grid,
        data<S>(out),        batch,   kept};
    on_device(grad, [&](cudaStream_t stream) {
      if (index) kernels::invert(sources, inverse, batch, grid.count(), stream);
      kernels::gather_patches_backward(backward, stream);
    });
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) {
  CFMVIT_IMPL(m, gather_patches, &cfmvit::gather_patches_cuda);
  CFMVIT_IMPL(m, gather_patches_backward, &cfmvit::gather_patches_backward_cuda);
}
