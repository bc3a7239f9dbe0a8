// MAE's loss on a GPU: checks, choice of dtype, workspace, launches.
#include "cuda/launch.h"
#include "kernels/reconstruction_pixels.cuh"
#include "torch/dispatch.h"
#include "torch/reconstruction_checks.h"
#include "torch/registration.h"

namespace cfmvit {
namespace {

template <typename S>
kernels::PatchPairs<S> pairs_of(const Tensor& pred, const Tensor& images, const MaskedPatches& patches,
                                bool normalize) {
  return {view<const S>(pred), pixels_of<const acc_t<S>>(images), patches.grid, patches.all, normalize};
}

}  // namespace

// pred (B, N or M, P * P * C), images (B, C, H, W), index (B, M) -> losses (B, M)
Tensor masked_pixel_loss_cuda(Tensor pred, Tensor images, Tensor index, int64_t patch_size, bool normalize) {
  constexpr const char* op = "masked_pixel_loss";
  const MaskedPatches patches = check_pixels(op, pred, images, index, patch_size);
  pred = rows_of(pred);
  const int64_t batch = pred.size(0), masked = index.size(1);
  const Tensor losses = like(images, {batch, masked});
  dispatch_floating(op, pred.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const kernels::PixelLosses<S> args{pairs_of<S>(pred, images, patches, normalize), patches.index,
                                       data<acc_t<S>>(losses), batch, masked};
    on_device(pred, [&](cudaStream_t stream) { kernels::pixel_losses(args, stream); });
  });
  return losses;
}

// grad (B, M) -> gradient of pred
Tensor masked_pixel_loss_backward_cuda(Tensor grad, Tensor pred, Tensor images, Tensor index,
                                       int64_t patch_size, bool normalize) {
  constexpr const char* op = "masked_pixel_loss_backward";
  const MaskedPatches patches = check_pixels(op, pred, images, index, patch_size);
  const int64_t batch = pred.size(0), rows = pred.size(1), masked = index.size(1);
  grad = checked_grad_output(op, grad, {batch, masked}, acc_type(pred));
  pred = rows_of(pred);
  const Tensor out = like(pred, {batch, rows, pred.size(2)});
  const Tensor memory = workspace<kernels::InverseEntries>(pred, {patches.all ? batch : 0, rows});
  const kernels::Sources sources = kernels::one_source(patches.index, masked);
  auto* inverse = patches.all ? data<kernels::InverseEntries>(memory) : nullptr;
  dispatch_floating(op, pred.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const kernels::PixelGradient<S> args{pairs_of<S>(pred, images, patches, normalize),
                                         sources,
                                         inverse,
                                         data<const acc_t<S>>(grad),
                                         data<S>(out),
                                         batch,
                                         rows,
                                         masked};
    on_device(pred, [&](cudaStream_t stream) {
      if (inverse) kernels::invert(sources, inverse, batch, rows, stream);
      kernels::pixel_gradient(args, stream);
    });
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) {
  CFMVIT_IMPL(m, masked_pixel_loss, &cfmvit::masked_pixel_loss_cuda);
  CFMVIT_IMPL(m, masked_pixel_loss_backward, &cfmvit::masked_pixel_loss_backward_cuda);
}
