// Cutting patches out of images on the CPU.
#include <cstring>

#include "cpu/rows.h"
#include "torch/dispatch.h"
#include "torch/masking_checks.h"
#include "torch/registration.h"
#include "torch/tensor_views.h"

namespace cfmvit {
namespace {

template <typename In, typename Out>
void cut(const Tensor& images, const Index* index, const PatchGrid& grid, const Statistics& statistics,
         const Tensor& out) {
  const int64_t kept = out.size(1), size = grid.patch;
  const Pixels<const In> in = pixels_of<const In>(images);
  Out* first = data<Out>(out);
  parallel(out.size(0) * kept, grid.width(), [&](int64_t task) {
    const int64_t b = task / kept, n = index ? (*index)(b, task % kept) : task % kept;
    Out* to = first + task * grid.width();
    for (int64_t c = 0; c < grid.channels; ++c, to += size * size) {
      const In* from = in.at(b, c, n / grid.columns * size, n % grid.columns * size);
      const auto scale = static_cast<Wider<In, Out>>(statistics.scale(c)),
                 shift = static_cast<Wider<In, Out>>(statistics.shift(c));
      CFMVIT_ROWS(affine_patch<In, Out>)(to, from, in.row, scale, shift, size);
    }
  });
}

}  // namespace

Tensor gather_patches_cpu(Tensor images, std::optional<Tensor> index, int64_t patch_size,
                          std::optional<Tensor> mean, std::optional<Tensor> std, ScalarType dtype) {
  constexpr const char* op = "gather_patches";
  const PatchGrid grid = checked_grid(op, images, patch_size);
  const bool bytes = images.scalar_type() == ScalarType::Byte;
  mean = checked_statistic(op, "mean", mean, grid.channels);
  std = checked_statistic(op, "std", std, grid.channels);
  const Statistics statistics = statistics_of(mean, std, bytes);
  std::optional<Index> at;
  if (index) at = checked_index(op, "index", *index, images.size(0), grid.count());
  images = rows_of(images);
  const Tensor out =
      like(images, {images.size(0), index ? index->size(1) : grid.count(), grid.width()}, dtype);
  const auto from = [&](auto in) {
    dispatch_floating(op, dtype, [&](auto zero) {
      cut<decltype(in), decltype(zero)>(images, at ? &*at : nullptr, grid, statistics, out);
    });
  };
  bytes ? from(uint8_t{}) : dispatch_floating(op, images.scalar_type(), from);
  return out;
}

// grad (B, K, C * P * P) -> gradient of float images (B, C, H, W); each patch of each image has one owner.
Tensor gather_patches_backward_cpu(Tensor grad, std::optional<Tensor> index, int64_t patch_size,
                                   std::optional<Tensor> std, int64_t channels, int64_t height,
                                   int64_t width) {
  constexpr const char* op = "gather_patches_backward";
  product({channels, height, width});
  const PatchGrid grid = checked_grid(op, channels, height, width, patch_size);
  check_patch_gradient(op, grad, index, grid);
  const int64_t batch = grad.size(0), kept = grad.size(1);
  const Tensor out = like(grad, {batch, channels, height, width});
  std = checked_statistic(op, "std", std, channels);
  const Statistics statistics = statistics_of(std::nullopt, std, false);
  std::vector<std::vector<int64_t>> owners(product({batch, grid.count()}));
  if (index) {
    const Index at = checked_index(op, "index", *index, batch, grid.count());
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t j = 0; j < kept; ++j) owners[b * grid.count() + at(b, j)].push_back(j);
    }
  } else {
    for (int64_t task = 0; task < batch * kept; ++task) owners[task].push_back(task % kept);
  }
  grad = dense(grad);
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const S* rows = data<const S>(grad);
    S* pixels = data<S>(out);
    parallel(batch * grid.count(), grid.width(), [&](int64_t task) {
      const int64_t b = task / grid.count(), n = task % grid.count();
      std::vector<acc_t<S>> sum(patch_size);
      for (int64_t line = 0; line < channels * patch_size; ++line) {
        const int64_t c = line / patch_size, y = line % patch_size;
        std::fill(sum.begin(), sum.end(), acc_t<S>(0));
        for (const int64_t j : owners[task]) {
          CFMVIT_ROWS(accumulate<S>)
          (sum.data(), rows + (b * kept + j) * grid.width() + line * patch_size, patch_size);
        }
        for (acc_t<S>& value : sum) value *= static_cast<acc_t<S>>(statistics.scale(c));
        S* to = pixels + ((b * channels + c) * height + n / grid.columns * patch_size + y) * width +
                n % grid.columns * patch_size;
        CFMVIT_ROWS(store<S>)(to, sum.data(), patch_size);
      }
    });
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  CFMVIT_IMPL(m, gather_patches, &cfmvit::gather_patches_cpu);
  CFMVIT_IMPL(m, gather_patches_backward, &cfmvit::gather_patches_backward_cpu);
}
