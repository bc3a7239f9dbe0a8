// MAE's loss on the CPU: the target of a masked patch is cut out of the image and normalised in a thread's
// own cache, so patches are never written.
#include <cmath>
#include <cstring>

#include "cpu/rows.h"
#include "torch/dispatch.h"
#include "torch/reconstruction_checks.h"
#include "torch/registration.h"

namespace cfmvit {
namespace {

// Cuts patches in MAE's order (row, column, channel) and normalises them, in the accumulation type.
template <typename Real>
struct Targets {
  Pixels<const Real> images;
  int64_t channels, columns, size;
  bool normalize;

  Targets(const Tensor& x, int64_t patch, bool normalized)
      : images(pixels_of<const Real>(x)),
        channels(x.size(1)),
        columns(x.size(3) / patch),
        size(patch),
        normalize(normalized) {}

  int64_t width() const { return channels * size * size; }

  void operator()(int64_t b, int64_t n, Real* out) const {
    if (channels == 3 && images.column == 1) {
      const Real* first = images.at(b, 0, n / columns * size, n % columns * size);
      CFMVIT_ROWS(interleave<Real>)(out, first, images.channel, images.row, size);
    } else {
      scattered(b, n, out);
    }
    if (!normalize) return;
    const int64_t count = width();
    const Real mean = CFMVIT_ROWS(total<Real>)(out, count) / count;
    const Real variance = CFMVIT_ROWS(spread<Real>)(out, mean, count) / (count - 1);
    const Real scale = 1 / std::sqrt(variance + Real(1e-6));
    CFMVIT_ROWS(affine<Real, Real>)(out, out, scale, -mean * scale, count);
  }

 private:
  void scattered(int64_t b, int64_t n, Real* out) const {
    for (int64_t y = 0; y < size; ++y) {
      for (int64_t c = 0; c < channels; ++c) {
        const Real* row = images.at(b, c, n / columns * size + y, n % columns * size);
        for (int64_t x = 0; x < size; ++x) out[(y * size + x) * channels + c] = row[x * images.column];
      }
    }
  }
};

// A buffer of the calling thread.
template <typename Real>
Real* scratch(int64_t count) {
  thread_local std::vector<Real> buffer;
  buffer.resize(count);
  return buffer.data();
}

}  // namespace

// pred (B, N or M, P * P * C), images (B, C, H, W), index (B, M) -> losses (B, M)
Tensor masked_pixel_loss_cpu(Tensor pred, Tensor images, Tensor index, int64_t patch_size, bool normalize) {
  constexpr const char* op = "masked_pixel_loss";
  const MaskedPatches patches = check_pixels(op, pred, images, index, patch_size);
  pred = rows_of(pred);
  const int64_t batch = pred.size(0), masked = index.size(1), width = pred.size(2);
  const int64_t count = images.size(2) / patch_size * (images.size(3) / patch_size);
  const std::vector<int64_t> entries = entries_by_token(batch, count, masked, patches.index);
  const Tensor losses = like(images, {batch, masked});
  dispatch_floating(op, pred.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using Real = acc_t<S>;
    const Targets<Real> targets(images, patch_size, normalize);
    const Rows<const S> preds = view<const S>(pred);
    Real* out = data<Real>(losses);
    parallel(batch * count, 8 * width, [&](int64_t task) {
      const int64_t b = task / count, n = task % count, j = entries[task];
      if (j < 0) return;
      Real* target = scratch<Real>(width);
      targets(b, n, target);
      const S* row = preds.at(b, patches.all ? n : j);
      out[b * masked + j] = CFMVIT_ROWS(squared_distance<S>)(row, target, width) / width;
    });
  });
  return losses;
}

// grad (B, M) -> gradient of pred
Tensor masked_pixel_loss_backward_cpu(Tensor grad, Tensor pred, Tensor images, Tensor index,
                                      int64_t patch_size, bool normalize) {
  constexpr const char* op = "masked_pixel_loss_backward";
  const MaskedPatches patches = check_pixels(op, pred, images, index, patch_size);
  const int64_t batch = pred.size(0), rows = pred.size(1), masked = index.size(1), width = pred.size(2);
  grad = checked_grad_output(op, grad, {batch, masked}, acc_type(pred));
  pred = rows_of(pred);
  const Tensor out = like(pred, {batch, rows, width});
  const auto row_of = [&](int64_t b, int64_t j) { return patches.row(b, j); };
  const std::vector<int64_t> entries = entries_by_token(batch, rows, masked, row_of);
  dispatch_floating(op, pred.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using Real = acc_t<S>;
    const Targets<Real> targets(images, patch_size, normalize);
    const Rows<const S> preds = view<const S>(pred);
    const Real* grad_output = data<const Real>(grad);
    S* first = data<S>(out);
    parallel(batch * rows, 8 * width, [&](int64_t task) {
      const int64_t b = task / rows, j = entries[task];
      S* to = first + task * width;
      if (j < 0) {
        std::memset(to, 0, width * sizeof(S));
        return;
      }
      Real* target = scratch<Real>(width);
      targets(b, patches.index(b, j), target);
      const Real factor = 2 * grad_output[b * masked + j] / width;
      CFMVIT_ROWS(combine<S, Real>)(to, factor, preds.at(b, task % rows), -factor, target, width);
    });
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  CFMVIT_IMPL(m, masked_pixel_loss, &cfmvit::masked_pixel_loss_cpu);
  CFMVIT_IMPL(m, masked_pixel_loss_backward, &cfmvit::masked_pixel_loss_backward_cpu);
}
