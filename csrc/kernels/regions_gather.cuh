// Forward passes as a gather: out[r, p, q, c] = sum over the taps of y and x of wy * wx * F[y, x, c]. Every
// output is written once, by one thread, in a fixed order of the sum.
//
// Where channels are neighbours in memory a thread owns up to 16 bytes of them, and a warp reads whole lines;
// else neighbouring threads own neighbouring bins of a channel, which read neighbouring pixels.
#pragma once

#include "kernels/regions_tables.cuh"
#include "kernels/vectors.cuh"

namespace cfmvit::kernels {

// Per-box results or their gradients: element (box, p, q, channel).
template <typename S>
struct Bins {
  S* data;
  int64_t box, y, x, channel;  // strides

  __device__ S* at(int64_t r, int64_t p, int64_t q, int64_t c) const {
    return data + r * box + p * y + q * x + c * channel;
  }
};

// sum += weight * the vector
template <int V, typename S, typename T>
__device__ __forceinline__ void add_vec(const S* at, T weight, T (&sum)[V]) {
  const auto vec = *reinterpret_cast<const Vec<S, V>*>(at);
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] += weight * vec[v];
}

// Sum of the taps of a bin of a box, for V neighbouring channels. scale: factors (height * width) of the
// image's pixels, or null.
template <int V, typename S, typename T>
__device__ __forceinline__ void gather_bin(const Level<const S>& on, const S* first, const T* scale,
                                           const Tables<T>& tables, int64_t box, int32_t p, int32_t q,
                                           T (&sum)[V]) {
  const int32_t* const begin_y = tables.y.begins(box) + p;
  const int32_t* const begin_x = tables.x.begins(box) + q;
  const Tap<T>* const taps_y = tables.y.taps(box);
  const Tap<T>* const taps_x = tables.x.taps(box);
  const int32_t end_y = begin_y[1], first_x = begin_x[0], end_x = begin_x[1], pixel = on.pixel;
  for (int32_t i = begin_y[0]; i < end_y; ++i) {
    const Tap<T> y = taps_y[i];
    const S* const row = first + y.pixel * on.row;
    if (scale == nullptr) {
#pragma unroll 4
      for (int32_t j = first_x; j < end_x; ++j) {
        const Tap<T> x = taps_x[j];
        add_vec<V>(row + int64_t{x.pixel} * pixel, y.weight * x.weight, sum);
      }
    } else {
      const T* const scale_row = scale + y.pixel * on.width;
      for (int32_t j = first_x; j < end_x; ++j) {
        const Tap<T> x = taps_x[j];
        add_vec<V>(row + int64_t{x.pixel} * pixel, y.weight * x.weight * scale_row[x.pixel], sum);
      }
    }
  }
}

// A block works on one box. Boxes of more than `most` taps are left to another kernel.
template <typename S>
struct Gather {
  Pyramid<const S> maps;
  const acc_t<S>* scale;
  Tables<acc_t<S>> tables;
  int64_t most;
  Bins<S> out;
  int32_t channels;

  __device__ bool skips(int64_t box) const {
    return int64_t{tables.y.count(box)} * tables.x.count(box) > most;
  }

  // V channels of a bin, read and written as one.
  template <int V>
  __device__ void bin(int64_t box, int32_t p, int32_t q, int32_t c) const {
    const int32_t map = tables.map[box], images = static_cast<int32_t>(maps.images);
    acc_t<S> sum[V] = {};
    if (map >= 0) {
      const Level<const S>& on = maps.level[map / images];
      const int64_t image = map % images;
      gather_bin<V>(on, on.data + image * on.image + c * on.channel,
                    scale == nullptr ? nullptr : scale + image * on.height * on.width, tables, box, p, q,
                    sum);
    }
    Vec<S, V> result{};
#pragma unroll
    for (int v = 0; v < V; ++v) result.set(v, sum[v]);
    *reinterpret_cast<Vec<S, V>*>(out.at(box, p, q, c)) = result;
  }
};

constexpr int kGatherThreads = 256;

// Threads along x own vectors of channels, along y bins.
template <typename S, int V>
__global__ void __launch_bounds__(kGatherThreads, 2) gather_kernel(Gather<S> op) {
  const int64_t box = blockIdx.x;
  const int32_t vecs = op.channels / V, bins_x = op.tables.x.bins, bins = bins_x * op.tables.y.bins;
  if (op.skips(box)) return;
  for (int32_t bin = blockIdx.y * blockDim.y + threadIdx.y; bin < bins; bin += gridDim.y * blockDim.y) {
    const int32_t p = bin / bins_x, q = bin % bins_x;
    for (int32_t vec = threadIdx.x; vec < vecs; vec += blockDim.x) op.template bin<V>(box, p, q, vec * V);
  }
}

// Neighbouring threads own neighbouring bins along x, then y, then channels.
template <typename S>
__global__ void __launch_bounds__(kGatherThreads, 2) gather_planes_kernel(Gather<S> op) {
  const int64_t box = blockIdx.x;
  const int32_t bins_x = op.tables.x.bins, bins = bins_x * op.tables.y.bins, count = op.channels * bins;
  if (op.skips(box)) return;
  for (int32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < count; i += gridDim.y * blockDim.x) {
    const int32_t bin = i % bins;
    op.template bin<1>(box, bin / bins_x, bin % bins_x, i / bins);
  }
}

template <typename S>
bool channels_are_neighbours(const Pyramid<S>& maps) {
  for (int i = 0; i < maps.levels; ++i) {
    if (maps.level[i].channel != 1) return false;
  }
  return true;
}

// Whether all rows of channels may be read and written in vectors of V.
template <int V, typename S, typename B>
bool vectorisable(const Pyramid<S>& maps, const Bins<B>& bins, int64_t channels) {
  int64_t strides = channels | bins.box | bins.y | bins.x;
  bool fit = bins.channel == 1 && reinterpret_cast<uintptr_t>(bins.data) % (V * sizeof(B)) == 0 &&
             channels_are_neighbours(maps);
  for (int i = 0; i < maps.levels; ++i) {
    const Level<S>& on = maps.level[i];
    strides |= on.image | on.row | on.pixel;
    fit = fit && reinterpret_cast<uintptr_t>(on.data) % (V * sizeof(S)) == 0;
  }
  return fit && strides % V == 0;
}

// Writes the bins of all boxes of at most op.most taps; channels * P * Q < 2^31.
template <typename S>
void gather(const Gather<S>& op, int64_t boxes, cudaStream_t stream) {
  const auto blocks = [](int64_t count, int64_t each) {
    return static_cast<unsigned>(std::min<int64_t>((count + each - 1) / each, kMostBlocksYZ));
  };
  const int64_t bins = int64_t{op.tables.y.bins} * op.tables.x.bins;
  const auto boxes_x = static_cast<unsigned>(boxes);
  if (op.channels == 0) return;
  if (!channels_are_neighbours(op.maps)) {
    const int64_t count = bins * op.channels,
                  threads = std::min<int64_t>(kGatherThreads, (count + 31) / 32 * 32);
    return launch(gather_planes_kernel<S>, dim3(boxes_x, blocks(count, threads)),
                  static_cast<unsigned>(threads), 0, stream, op);
  }
  const auto run = [&](auto v) {
    constexpr int V = decltype(v)::value;
    const int64_t along = std::min<int64_t>(op.channels / V, kGatherThreads);
    const int64_t across = std::min(kGatherThreads / along, bins);
    launch(gather_kernel<S, V>, dim3(boxes_x, blocks(bins, across)),
           dim3(static_cast<unsigned>(along), static_cast<unsigned>(across)), 0, stream, op);
  };
  constexpr int kMost = 16 / sizeof(S);
  vectorisable<kMost>(op.maps, op.out, op.channels) ? run(std::integral_constant<int, kMost>())
                                                    : run(std::integral_constant<int, 1>());
}

}  // namespace cfmvit::kernels
