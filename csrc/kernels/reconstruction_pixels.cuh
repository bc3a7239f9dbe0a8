// MAE's loss: a warp walks a patch of the image in the image's order, holds it in registers where it fits,
// and meets each pixel's prediction where it lies in MAE's order (row, column, channel). B images, C
// channels, N patches, M masked ones, P pixels a side.
#pragma once

#include "kernels/fast_division.cuh"
#include "kernels/reconstruction.cuh"
#include "plain/patch_grid.h"

namespace cfmvit::kernels {

// Pred and the images that it predicts.
template <typename S>
struct PatchPairs {
  Rows<const S> pred;             // (B, N or M, P * P * C)
  Pixels<const acc_t<S>> images;  // (B, C, H, W)
  PatchGrid grid;
  bool all, normalize;  // all: pred has a row for each patch
  Divider side, columns;

  PatchPairs(Rows<const S> rows, Pixels<const acc_t<S>> pixels, const PatchGrid& patches, bool every,
             bool scaled)
      : pred(rows),
        images(pixels),
        grid(patches),
        all(every),
        normalize(scaled),
        side(patches.patch),
        columns(patches.columns) {}
};

// One patch, spread over the lanes of a warp, its pixels normalised.
template <typename S>
class Patch {
 public:
  using Real = acc_t<S>;

  __device__ __forceinline__ Patch(const PatchPairs<S>& pairs, int64_t b, int64_t n) : pairs_(pairs) {
    int column = static_cast<int>(n);
    const int64_t line = int64_t{pairs.columns.split(column)} * pairs.grid.patch;
    image_ = pairs.images.at(b, 0, line, int64_t{column} * pairs.grid.patch);
    count_ = static_cast<int>(pairs.grid.width());
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (position(u) < count_) held_[u] = pixel(position(u));
    }
    if (!pairs.normalize) return;
    Real sum = 0, squares = 0;
    each([&](int, Real value) { sum += value; });
    mean_ = warp_sum(sum) / count_;
    each([&](int, Real value) { squares += (value - mean_) * (value - mean_); });
    scale_ = 1 / std::sqrt(warp_sum(squares) / (count_ - 1) + Real(1e-6));
  }

  // Calls visit(position in MAE's order, target) for each pixel.
  template <typename Visit>
  __device__ __forceinline__ void targets(const Visit& visit) const {
    each([&](int i, Real value) {
      int x = i, y = pairs_.side.split(x);
      const int c = pairs_.side.split(y), size = static_cast<int>(pairs_.grid.patch);
      visit((y * size + x) * static_cast<int>(pairs_.grid.channels) + c, (value - mean_) * scale_);
    });
  }
  __device__ __forceinline__ int count() const { return count_; }

 private:
  static constexpr int kHeld =
      sizeof(Real) == 8 ? 12 : 24;  // pixels a lane: patches of 16 x 16 in 3 channels

  __device__ __forceinline__ static int position(int u) { return static_cast<int>(threadIdx.x) + u * kLanes; }
  __device__ __forceinline__ Real pixel(int i) const {
    int x = i, y = pairs_.side.split(x);
    const int c = pairs_.side.split(y);
    return image_[c * pairs_.images.channel + y * pairs_.images.row + x * pairs_.images.column];
  }
  template <typename Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (position(u) < count_) visit(position(u), held_[u]);
    }
    for (int i = position(kHeld); i < count_; i += kLanes) visit(i, pixel(i));
  }

  const PatchPairs<S>& pairs_;
  const Real* image_;
  int count_;
  Real held_[kHeld], mean_ = 0, scale_ = 1;
};

// losses[b, j] = the mean square of pred's difference from patch n = index[b, j]; zero where n is out of
// range.
template <typename S>
struct PixelLosses {
  PatchPairs<S> pairs;
  Index index;  // (B, M)
  acc_t<S>* losses;
  int64_t batch, masked;
};

template <typename S>
__global__ void __launch_bounds__(kThreads, 2) pixel_losses_kernel(PixelLosses<S> p) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y, b = row / p.masked, j = row - b * p.masked;
  if (b >= p.batch) return;
  const int64_t n = p.index(b, j);
  acc_t<S> loss = 0;
  if (n >= 0 && n < p.pairs.grid.count()) {
    const S* pred = p.pairs.pred.at(b, p.pairs.all ? n : j);
    const Patch<S> patch(p.pairs, b, n);
    acc_t<S> sum = 0;
    patch.targets([&](int i, acc_t<S> target) {
      const acc_t<S> difference = to_acc(pred[i]) - target;
      sum += difference * difference;
    });
    loss = warp_sum(sum) / patch.count();
  }
  if (threadIdx.x == 0) p.losses[row] = loss;
}

// The gradient of pred: zero where no entry names its patch.
template <typename S>
struct PixelGradient {
  PatchPairs<S> pairs;
  Sources sources;                // (B, M)
  const InverseEntries* inverse;  // (B, N) where pred has all rows, else null
  const acc_t<S>* grad_output;    // (B, M)
  S* out;                         // (B, N or M, P * P * C)
  int64_t batch, rows, masked;
};

template <typename S>
__global__ void __launch_bounds__(kThreads, 2) pixel_gradient_kernel(PixelGradient<S> p) {
  const int64_t at = int64_t{blockIdx.x} * kWarps + threadIdx.y, b = at / p.rows, row = at - b * p.rows;
  if (b >= p.batch) return;
  const int width = static_cast<int>(p.pairs.grid.width());
  S* to = p.out + at * width;
  const auto self = static_cast<int32_t>(row);
  const InverseEntries entries = p.inverse ? p.inverse[at] : InverseEntries{self, self};
  const int64_t n = entries.last < 0 ? -1 : p.sources(b, entries.first);
  if (n < 0 || n >= p.pairs.grid.count()) return fill_row<1>(to, acc_t<S>(0), width);
  acc_t<S> grad_output = p.grad_output[b * p.masked + entries.first];
  for (int32_t e = entries.first; e < entries.last;) {
    e = p.sources.next(b, e, n);
    grad_output += p.grad_output[b * p.masked + e];
  }
  const S* pred = p.pairs.pred.at(b, row);
  const acc_t<S> factor = 2 * grad_output / width;
  Patch<S>(p.pairs, b, n).targets([&](int i, acc_t<S> target) {
    from_acc(factor * (to_acc(pred[i]) - target), to[i]);
  });
}

template <typename S>
void pixel_losses(const PixelLosses<S>& p, cudaStream_t stream) {
  const dim3 block(kLanes, kWarps);
  launch(pixel_losses_kernel<S>, row_grid(p.batch * p.masked, block), block, 0, stream, p);
}

template <typename S>
void pixel_gradient(const PixelGradient<S>& p, cudaStream_t stream) {
  const dim3 block(kLanes, kWarps);
  launch(pixel_gradient_kernel<S>, row_grid(p.batch * p.rows, block), block, 0, stream, p);
}

}  // namespace cfmvit::kernels
