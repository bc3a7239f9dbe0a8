// Cutting patches out of images, and the gradient. B images, C channels, K patches, P pixels a side. Threads
// move runs of V neighbouring pixels.
#pragma once

#include "kernels/inverse_index.cuh"
#include "kernels/patch_dividers.cuh"

namespace cfmvit::kernels {

// out[b, j] = pixels * scale[c] + shift[c] of patch n = index[b, j], by channel, row, column; patches out of
// range are zero.
template <typename In, typename Out>
struct GatherPatches {
  Pixels<const In> images;  // (B, C, H, W), columns neighbours
  Index index;              // (B, K); without data: all patches
  Statistics statistics;
  PatchGrid grid;
  Out* out;  // (B, K, C * P * P)
  int64_t batch, kept;
};

template <typename In, typename Out, int V>
__global__ void __launch_bounds__(kThreads, 3)
    gather_patches_kernel(GatherPatches<In, Out> g, PatchDividers by) {
  using Real = Wider<In, Out>;
  Real* scale = dynamic_shared<Real>();
  const int channels = static_cast<int>(g.grid.channels);
  for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < channels; c += blockDim.x * blockDim.y) {
    scale[c] = static_cast<Real>(g.statistics.scale(c));
    scale[channels + c] = static_cast<Real>(g.statistics.shift(c));
  }
  __syncthreads();
  const int width = static_cast<int>(g.grid.width()), runs = width / V, size = static_cast<int>(g.grid.patch);
  const int64_t step = int64_t{gridDim.x} * blockDim.y;
  for (int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < g.batch * g.kept; row += step) {
    const int64_t b = row / g.kept, j = row - b * g.kept, n = g.index.data ? g.index(b, j) : j;
    Out* to = g.out + row * width;
    if (n < 0 || n >= g.grid.count()) {
      fill_row<V>(to, acc_t<Out>(0), runs);
      continue;
    }
    int column = static_cast<int>(n);
    const int line = by.columns.split(column) * size;
    const In* image = g.images.at(b, 0, line, int64_t{column} * size);
    constexpr int kAhead = 2;
    for (int first = threadIdx.x; first < runs; first += kAhead * blockDim.x) {
      Vec<In, V> pixels[kAhead];
      int channel[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        int x = first + u * static_cast<int>(blockDim.x);
        if (x >= runs) break;
        int y = by.runs_a_line.split(x);
        channel[u] = by.lines.split(y);
        pixels[u] = vec_at<V>(image + channel[u] * g.images.channel + y * g.images.row, x);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int r = first + u * static_cast<int>(blockDim.x);
        if (r >= runs) break;
        const Real times = scale[channel[u]], plus = scale[channels + channel[u]];
        Vec<Out, V> run{};
#pragma unroll
        for (int v = 0; v < V; ++v) {
          run.set(v, static_cast<acc_t<Out>>(pixels[u][v] * times + plus));
        }
        vec_at<V>(to, r) = run;
      }
    }
  }
}

template <typename In, typename Out>
void gather_patches(const GatherPatches<In, Out>& g, cudaStream_t stream) {
  const int64_t rows = g.batch * g.kept, width = g.grid.width();
  if (rows * width == 0) return;
  constexpr int64_t kMostBlocks = 1 << 13;  // of a few rows each, so that the channels' factors cost little
  const Pixels<const In>& in = g.images;
  dispatch_vec<16 / sizeof(Out)>(
      g.grid.patch, {in.data, g.out}, {in.image, in.channel, in.row}, {sizeof(In), sizeof(Out)}, [&](auto v) {
        constexpr int V = decltype(v)::value;
        const dim3 block = row_block(width / V);
        const int64_t blocks = ceil_div(rows, block.y);
        const dim3 grid = grid_size(blocks < kMostBlocks ? blocks : kMostBlocks);
        launch(gather_patches_kernel<In, Out, V>, grid, block, 2 * g.grid.channels * sizeof(Wider<In, Out>),
               stream, g, PatchDividers(g.grid, V));
      });
}

// The gradient of float images: of each patch, the sum of the rows that name it times scale[c].
template <typename S>
struct GatherPatchesBackward {
  const S* grad;                  // (B, K, C * P * P)
  Sources sources;                // (B, K); without data: all patches
  const InverseEntries* inverse;  // (B, N), or null without an index
  Statistics statistics;
  PatchGrid grid;
  S* out;  // (B, C, H, W)
  int64_t batch, kept;
};

// Rows of threads walk lines of the images, blockIdx.y of one channel of one image.
template <typename S, int V>
__global__ void __launch_bounds__(kThreads, 4)
    gather_patches_backward_kernel(GatherPatchesBackward<S> g, PatchDividers by) {
  const int size = static_cast<int>(g.grid.patch), runs = static_cast<int>(g.grid.columns * size / V);
  const int64_t line = int64_t{blockIdx.x} * blockDim.y + threadIdx.y, height = g.grid.rows * size;
  const int64_t plane = line / height, b = plane / g.grid.channels;
  if (b >= g.batch) return;
  const int c = static_cast<int>(plane - b * g.grid.channels);
  int y = static_cast<int>(line - plane * height);
  const int64_t above = by.lines.split(y) * g.grid.columns, within = (int64_t{c} * size + y) * size;
  const acc_t<S> scale = static_cast<acc_t<S>>(g.statistics.scale(c));
  S* to = g.out + line * g.grid.columns * size;
  for (int r = threadIdx.x; r < runs; r += blockDim.x) {
    int x = r;
    const int64_t n = above + by.runs_a_line.split(x);
    const InverseEntries entries = g.inverse
                                       ? g.inverse[b * g.grid.count() + n]
                                       : InverseEntries{static_cast<int32_t>(n), static_cast<int32_t>(n)};
    acc_t<S> sum[V] = {};
    for (int32_t e = entries.first; e <= entries.last;
         e = e < entries.last ? g.sources.next(b, e, n) : e + 1) {
      const Vec<S, V> run = vec_at<V>(g.grad + (b * g.kept + e) * g.grid.width() + within, x);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += run[v];
    }
    Vec<S, V> run{};
#pragma unroll
    for (int v = 0; v < V; ++v) run.set(v, sum[v] * scale);
    vec_at<V>(to, r) = run;
  }
}

template <typename S>
void gather_patches_backward(const GatherPatchesBackward<S>& g, cudaStream_t stream) {
  const int64_t lines = g.batch * g.grid.channels * g.grid.rows * g.grid.patch;
  if (lines * g.grid.columns == 0) return;
  dispatch_vec<16 / sizeof(S)>(g.grid.patch, {g.grad, g.out}, {}, {sizeof(S)}, [&](auto v) {
    constexpr int V = decltype(v)::value;
    const dim3 block = row_block(g.grid.columns * g.grid.patch / V);
    launch(gather_patches_backward_kernel<S, V>, row_grid(lines, block), block, 0, stream, g,
           PatchDividers(g.grid, V));
  });
}

}  // namespace cfmvit::kernels
