// MAE's loss: a warp holds a patch of the image and its prediction in registers, where they fit. B images, C
// channels, N patches, M masked ones, P pixels a side.
#pragma once

#include "kernels/patch_dividers.cuh"
#include "kernels/reconstruction.cuh"

namespace cfmvit::kernels {

// Pred and the images that it predicts.
template <typename S>
struct PatchPairs {
  Rows<const S> pred;             // (B, N or M, P * P * C), by row, column, channel
  Pixels<const acc_t<S>> images;  // (B, C, H, W)
  PatchGrid grid;
  bool all, normalize;  // all: pred has a row for each patch
};

// How lanes take a patch: in runs of V neighbouring pixels in all C channels, which are neighbours in a
// prediction too; a lane holds kHeld numbers of each and reads the rest again. Runs of one pixel in one
// channel, by channel, row, column, fit any patch.
template <int kV, int kC, int kHeld>
struct Runs {
  static constexpr int V = kV, C = kC, held = kHeld, width = V * C, rounds = held / width;
};
// Blocks to a multiprocessor, by the registers that what is held takes.
template <typename S, typename R>
constexpr int blocks_of_runs() {
  return R::held > 24 ? 1 : R::width > 1 && sizeof(S) == 2 ? 3 : 2;
}

// One patch and its prediction, spread over the lanes of a warp, the pixels normalised.
template <typename S, typename R>
class PatchPair {
 public:
  using Real = acc_t<S>;
  using Numbers = Vec<S, R::width>;
  static constexpr int kPiece = alignof(Numbers) / sizeof(S);  // numbers that one instruction moves

  __device__ __forceinline__ PatchPair(const PatchPairs<S>& pairs, const PatchDividers& by, const S* pred,
                                       int64_t b, int64_t n)
      : pairs_(pairs), by_(by), pred_(pred), count_(static_cast<int>(pairs.grid.width())) {
    int column = static_cast<int>(n);
    const int64_t line = int64_t{by.columns.split(column)} * pairs.grid.patch;
    image_ = pairs.images.at(b, 0, line, int64_t{column} * pairs.grid.patch);
#pragma unroll
    for (int u = 0; u < R::rounds; ++u) {
      if (lane() + u * kLanes < runs()) held_[u] = read(lane() + u * kLanes);
    }
    if (!pairs.normalize) return;
    Real sum = 0, squares = 0;
    each([&](Run& run) {
#pragma unroll
      for (int v = 0; v < R::width; ++v) sum += run.pixels[v];
    });
    const Real mean = warp_sum(sum) / count_;
    each([&](Run& run) {
#pragma unroll
      for (int v = 0; v < R::width; ++v) {
        run.pixels[v] -= mean;
        squares += run.pixels[v] * run.pixels[v];
      }
    });
    mean_ = mean;  // what is read again is centred from here on, as what is held is now
    scale_ = 1 / std::sqrt(warp_sum(squares) / (count_ - 1) + Real(1e-6));
  }

  // The mean square of the differences, in each lane.
  __device__ __forceinline__ Real loss() {
    Real sum = 0;
    each([&](const Run& run) {
#pragma unroll
      for (int v = 0; v < R::width; ++v) sum += difference(run, v) * difference(run, v);
    });
    return warp_sum(sum) / count_;
  }

  // to = factor * the differences. Runs pass through `stage`, a warp's, so that it writes whole sectors.
  __device__ __forceinline__ void gradient(S* to, Real factor, Numbers* stage) {
    each_round([&](int first, const Run& run) {
      Numbers out{};
#pragma unroll
      for (int v = 0; v < R::width; ++v) out.set(v, factor * difference(run, v));
      if constexpr (R::width == 1) {
        if (first + lane() < runs()) vec_at<1>(to, place(first + lane()).pred) = out;
      } else {
        stage[lane()] = out;
        __syncwarp();
        constexpr int kPieces = R::width / kPiece;
        const int left = runs() - first, pieces = (left < kLanes ? left : kLanes) * kPieces;
        const S* from = reinterpret_cast<const S*>(stage);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          const int p = lane() + i * kLanes;
          if (p < pieces) vec_at<kPiece>(to + first * R::width, p) = vec_at<kPiece>(from, p);
        }
        __syncwarp();
      }
    });
  }

 private:
  struct Run {
    Real pixels[R::width];
    Numbers pred;
  };
  struct Place {
    int64_t image;
    int pred;
  };

  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int runs() const { return count_ / R::width; }
  __device__ __forceinline__ Real difference(const Run& run, int v) const {
    return run.pred[v] - run.pixels[v] * scale_;
  }
  // Where run r lies in the image, from the patch's first pixel, and in the prediction.
  __device__ __forceinline__ Place place(int r) const {
    int x = r, y = by_.runs_a_line.split(x);
    if constexpr (R::C > 1) return {y * pairs_.images.row + x * R::V, r * R::width};
    const int c = by_.lines.split(y), size = static_cast<int>(pairs_.grid.patch);
    return {c * pairs_.images.channel + y * pairs_.images.row + x * pairs_.images.column,
            (y * size + x) * static_cast<int>(pairs_.grid.channels) + c};
  }
  __device__ __forceinline__ Run read(int r) const {
    const Place at = place(r);
    Run run;
    run.pred = vec_at<R::width>(pred_ + at.pred, 0);
#pragma unroll
    for (int c = 0; c < R::C; ++c) {
      const Vec<Real, R::V> pixels = vec_at<R::V>(image_ + at.image + c * pairs_.images.channel, 0);
#pragma unroll
      for (int v = 0; v < R::V; ++v) run.pixels[v * R::C + c] = pixels[v] - mean_;
    }
    return run;
  }
  // Calls visit(first run of the warp's, the lane's run) for each round; beyond the last run it means
  // nothing.
  template <typename Visit>
  __device__ __forceinline__ void each_round(const Visit& visit) {
#pragma unroll
    for (int u = 0; u < R::rounds; ++u) {
      if (u * kLanes < runs()) visit(u * kLanes, held_[u]);
    }
#pragma unroll 1  // rare: patches of more than a lane holds
    for (int first = R::rounds * kLanes; first < runs(); first += kLanes) {
      Run run{};
      if (first + lane() < runs()) run = read(first + lane());
      visit(first, run);
    }
  }
  template <typename Visit>
  __device__ __forceinline__ void each(const Visit& visit) {
    each_round([&](int first, Run& run) {
      if (first + lane() < runs()) visit(run);
    });
  }

  const PatchPairs<S>& pairs_;
  const PatchDividers& by_;
  const S* pred_;
  const Real* image_;
  int count_;
  Real mean_ = 0, scale_ = 1;
  Run held_[R::rounds];
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

template <typename S, typename R>
__global__ void __launch_bounds__(kThreads, (blocks_of_runs<S, R>()))
    pixel_losses_kernel(PixelLosses<S> p, PatchDividers by) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y, b = row / p.masked, j = row - b * p.masked;
  if (b >= p.batch) return;
  const int64_t n = p.index(b, j);
  acc_t<S> loss = 0;
  if (n >= 0 && n < p.pairs.grid.count()) {
    loss = PatchPair<S, R>(p.pairs, by, p.pairs.pred.at(b, p.pairs.all ? n : j), b, n).loss();
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

template <typename S, typename R>
__global__ void __launch_bounds__(kThreads, (blocks_of_runs<S, R>()))
    pixel_gradient_kernel(PixelGradient<S> p, PatchDividers by) {
  using Pair = PatchPair<S, R>;
  __shared__ typename Pair::Numbers stage[kWarps][kLanes];
  const int64_t at = int64_t{blockIdx.x} * kWarps + threadIdx.y, b = at / p.rows, row = at - b * p.rows;
  if (b >= p.batch) return;
  const int width = static_cast<int>(p.pairs.grid.width());
  S* to = p.out + at * width;
  const auto self = static_cast<int32_t>(row);
  const InverseEntries entries = p.inverse ? p.inverse[at] : InverseEntries{self, self};
  const int64_t n = entries.last < 0 ? -1 : p.sources(b, entries.first);
  if (n < 0 || n >= p.pairs.grid.count()) {
    return fill_row<Pair::kPiece>(to, acc_t<S>(0), width / Pair::kPiece);
  }
  acc_t<S> grad_output = p.grad_output[b * p.masked + entries.first];
  for (int32_t e = entries.first; e < entries.last;) {
    e = p.sources.next(b, e, n);
    grad_output += p.grad_output[b * p.masked + e];
  }
  Pair(p.pairs, by, p.pairs.pred.at(b, row), b, n).gradient(to, 2 * grad_output / width, stage[threadIdx.y]);
}

// Calls launch(Runs, PatchDividers) with the longest runs that the patch, the strides and the addresses
// allow.
template <typename S, typename Launch>
void dispatch_runs(const PatchPairs<S>& p, const S* out, const Launch& launch) {
  const auto with = [&](auto runs) { launch(runs, PatchDividers(p.grid, decltype(runs)::V)); };
  if constexpr (!std::is_same_v<S, double>) {
    const Pixels<const acc_t<S>>& in = p.images;
    const auto fit = [&](int v) {
      return p.grid.channels == 3 && in.column == 1 &&
             vecs_fit(v, p.grid.patch, {in.data, p.pred.data, out},
                      {in.image, in.channel, in.row, p.pred.sample, p.pred.token},
                      {sizeof(acc_t<S>), sizeof(S)});
    };
    if (fit(4)) return p.grid.patch <= 16 ? with(Runs<4, 3, 24>()) : with(Runs<4, 3, 96>());
    if (fit(2)) return with(Runs<2, 3, 24>());
  }
  with(Runs<1, 1, sizeof(acc_t<S>) == 8 ? 12 : 24>());
}

template <typename S>
void pixel_losses(const PixelLosses<S>& p, cudaStream_t stream) {
  const dim3 block(kLanes, kWarps);
  dispatch_runs<S>(p.pairs, nullptr, [&](auto runs, const PatchDividers& by) {
    launch(pixel_losses_kernel<S, decltype(runs)>, row_grid(p.batch * p.masked, block), block, 0, stream, p,
           by);
  });
}

template <typename S>
void pixel_gradient(const PixelGradient<S>& p, cudaStream_t stream) {
  const dim3 block(kLanes, kWarps);
  dispatch_runs<S>(p.pairs, p.out, [&](auto runs, const PatchDividers& by) {
    launch(pixel_gradient_kernel<S, decltype(runs)>, row_grid(p.batch * p.rows, block), block, 0, stream, p,
           by);
  });
}

}  // namespace cfmvit::kernels
