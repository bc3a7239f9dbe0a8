// Forward passes as a gather: out[r, p, q, c] = sum over the taps of y and x of wy * wx * F[y, x, c]. Every
// output is written once, by one thread, in a fixed order of the sum.
//
// A thread owns 16 bytes of channels, so that a warp reads whole lines; a block owns a box, whose bins read
// the same pixels (features of 16 bits: regions_bin_rows.cuh). Maps that do not lie so in memory are copied
// first (regions_pack.cuh), unless boxes are so few that it costs more than reading their pixels element by
// element.
#pragma once

#include "kernels/fast_division.cuh"
#include "kernels/regions_pack.cuh"

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

// The same address of global memory, added up here and not again, from its parts, wherever it is used.
template <typename T>
__device__ __forceinline__ const T* added_up(const T* address) {
#ifdef __CUDACC__
  size_t sum = __cvta_generic_to_global(address);
  asm("" : "+l"(sum));
  address = static_cast<const T*>(__cvta_global_to_generic(sum));
#endif
  return address;
}

// A box's map, from a channel on, and what the box's bins read of it.
template <typename S>
struct Source {
  const S* data;
  const acc_t<S>* scale;  // factors (height * width) of the pixels, or null
  int64_t row, width;
  uint32_t pixel;
  const int32_t *begin_y, *begin_x;
  const Tap<acc_t<S>>*taps_y, *taps_x;
};

// Sum of the taps of a bin of a box, for V neighbouring channels. Neighbours in a row are read before the
// first of them is needed.
template <int V, bool kScaled, typename S, typename T>
__device__ __forceinline__ void gather_bin(const Source<S>& from, int32_t p, int32_t q, T (&sum)[V]) {
  constexpr int kAhead = 16 / sizeof(T);  // float: of sampling ratio 2 all that a bin reads of a row
  const int32_t first_y = from.begin_y[p], end_y = from.begin_y[p + 1], end_x = from.begin_x[q + 1];
  for (int32_t j = from.begin_x[q]; j < end_x; j += kAhead) {
    const S* column[kAhead];
    const T* scale[kAhead];
    T weight_x[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const Tap<T> x = from.taps_x[min(j + k, end_x - 1)];  // again the last where there are no more
      column[k] = added_up(from.data + uint64_t{static_cast<uint32_t>(x.pixel)} * from.pixel);
      if (kScaled) scale[k] = from.scale + x.pixel;
      weight_x[k] = x.weight;
    }
#pragma unroll 2
    for (int32_t i = first_y; i < end_y; ++i) {
      const Tap<T> y = from.taps_y[i];
      Vec<S, V> value[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        value[k] = *reinterpret_cast<const Vec<S, V>*>(column[k] + y.pixel * from.row);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (j + k >= end_x) break;
        T weight = y.weight * weight_x[k];
        if (kScaled) weight *= scale[k][y.pixel * from.width];
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += weight * value[k][v];
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

  // Of a box that has a map.
  __device__ Source<S> source(int64_t box, int32_t c) const {
    const int32_t map = tables.map[box], images = static_cast<int32_t>(maps.images);
    const Level<const S>& on = maps.level[map / images];
    const int64_t image = map % images;
    return {on.data + image * on.image + c * on.channel,
            scale + image * on.height * on.width,
            on.row,
            on.width,
            static_cast<uint32_t>(on.pixel),
            added_up(tables.y.begins(box)),
            added_up(tables.x.begins(box)),
            added_up(tables.y.taps(box)),
            added_up(tables.x.taps(box))};
  }

  // V channels of a bin. from: the box's map, from the first of them on, where it has one.
  template <int V, bool kScaled>
  __device__ static Vec<S, V> bin(const Source<S>& from, int32_t p, int32_t q) {
    acc_t<S> sum[V] = {};
    gather_bin<V, kScaled>(from, p, q, sum);
    Vec<S, V> result{};
#pragma unroll
    for (int v = 0; v < V; ++v) result.set(v, sum[v]);
    return result;
  }

  // An element of the results, by its taps alone.
  __device__ S value(int64_t box, int32_t p, int32_t q, int32_t c) const {
    Vec<S, 1> result{};
    if (tables.map[box] >= 0) {
      const Source<S> from = source(box, c);
      result = scale == nullptr ? bin<1, false>(from, p, q) : bin<1, true>(from, p, q);
    }
    return result.at[0];
  }
};

constexpr int kGatherThreads = 256, kGatherLanes = 32, kGatherRows = 8;
constexpr int64_t kGatherTileBytes = 32768;

// Writes a tile, (channels, tile_bins) of which `bins` are there, as bins [first, first + bins) of channels
// [c, c + channels) of a box, neighbours in memory by neighbouring threads.
template <typename S>
__device__ void store_tile(const Bins<S>& out, const S* tile, int64_t box, int32_t c, int32_t channels,
                           int32_t first, int32_t bins, int32_t tile_bins, int32_t bins_x) {
  constexpr int V = kMapVec<S>;
  const int32_t count = channels * bins, threads = blockDim.x * blockDim.y;
  const int32_t thread = threadIdx.y * blockDim.x + threadIdx.x;
  S* const to = out.at(box, 0, 0, c);
  const bool adjacent = out.x == 1 && out.y == bins_x && out.channel == tile_bins && bins == tile_bins;
  if (adjacent && reinterpret_cast<uintptr_t>(to) % 16 == 0 && count % V == 0) {
    for (int32_t i = thread; i < count / V; i += threads) vec_at<V>(to, i) = vec_at<V>(tile, i);
    return;
  }
  for (int32_t i = thread; i < count; i += threads) {
    const int32_t channel = out.channel == 1 ? i % channels : i / bins;
    const int32_t bin = out.channel == 1 ? i / channels : i % bins, at = first + bin;
    *out.at(box, at / bins_x, at % bins_x, c + channel) = tile[channel * tile_bins + bin];
  }
}

// Threads along x own vectors of channels, along y bins. tile_bins: those of a tile in shared memory,
// (blockDim.x vectors, tile_bins), that goes where results are not in vectors; 0 where they are.
template <typename S, bool kScaled>
__global__ void __launch_bounds__(kGatherThreads, 3)
    gather_kernel(Gather<S> op, int32_t tile_bins, Divider by_bins_x) {
  constexpr int V = kMapVec<S>;
  const int64_t box = blockIdx.x;
  const int32_t bins_x = op.tables.x.bins, bins = bins_x * op.tables.y.bins;
  const int32_t along = blockDim.x * V;
  if (op.skips(box)) return;
  S* const tile = dynamic_shared<S>();
  for (int32_t c = blockIdx.y * along; c < op.channels; c += gridDim.y * along) {
    const int32_t mine = c + static_cast<int32_t>(threadIdx.x) * V;
    const bool known = op.tables.map[box] >= 0;
    Source<S> from{};
    if (known) from = op.source(box, mine);
    for (int32_t first = 0, end; first < bins; first = end) {
      end = tile_bins == 0 ? bins : min(first + tile_bins, bins);
      for (int32_t bin = first + threadIdx.y; bin < end && mine < op.channels; bin += blockDim.y) {
        int32_t q = bin;
        const int32_t p = by_bins_x.split(q);
        Vec<S, V> result{};
        if (known) result = op.template bin<V, kScaled>(from, p, q);
        if (tile_bins == 0) {
          *reinterpret_cast<Vec<S, V>*>(op.out.at(box, p, q, mine)) = result;
        } else {
          S* const to = tile + threadIdx.x * V * tile_bins + bin - first;
#pragma unroll
          for (int v = 0; v < V; ++v) to[v * tile_bins] = result.element(v);
        }
      }
      if (tile_bins == 0) continue;
      __syncthreads();
      store_tile(op.out, tile, box, c, min(along, op.channels - c), first, end - first, tile_bins, bins_x);
      __syncthreads();
    }
  }
}

// An element a thread; neighbouring threads own neighbours in the results.
template <typename S>
__global__ void __launch_bounds__(kGatherThreads, 2) gather_elements_kernel(Gather<S> op) {
  const int64_t box = blockIdx.x;
  const int32_t bins_x = op.tables.x.bins, bins = bins_x * op.tables.y.bins, count = op.channels * bins;
  if (op.skips(box)) return;
  for (int32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < count; i += gridDim.y * blockDim.x) {
    const int32_t bin = op.out.channel == 1 ? i / op.channels : i % bins;
    const int32_t c = op.out.channel == 1 ? i % op.channels : i / bins;
    *op.out.at(box, bin / bins_x, bin % bins_x, c) = op.value(box, bin / bins_x, bin % bins_x, c);
  }
}

// Whether rows of channels may be read and written in vectors of V.
template <int V, typename S>
bool in_vectors(const Pyramid<S>& maps, int64_t channels) {
  bool fit = channels % V == 0;
  for (int i = 0; i < maps.levels; ++i) {
    const Level<S>& on = maps.level[i];
    fit = fit && on.channel == 1 && (on.image | on.row | on.pixel) % V == 0 &&
          reinterpret_cast<uintptr_t>(on.data) % 16 == 0;
  }
  return fit;
}
template <int V, typename S>
bool in_vectors(const Bins<S>& bins, int64_t channels) {
  return bins.channel == 1 && (channels | bins.box | bins.y | bins.x) % V == 0 &&
         reinterpret_cast<uintptr_t>(bins.data) % 16 == 0;
}

// A place for a copy of the maps in whole vectors where that pays; else without levels. Reading and writing
// an element costs about 1/16 of reading the pixels of a bin element by element (estimated by sectors).
template <typename S>
Pyramid<S> packed_for(Workspace& workspace, const Pyramid<const S>& maps, int64_t boxes, int64_t bins,
                      int64_t channels) {
  constexpr double kElementsOfBin = 16;
  double elements = 0;
  bool small = whole_vectors<S>(channels) <= INT32_MAX;
  for (int l = 0; l < maps.levels; ++l) {
    const double pixels = double(maps.level[l].height) * double(maps.level[l].width);
    elements += double(maps.images) * pixels * double(whole_vectors<S>(channels));
    small = small && pixels <= INT32_MAX;
  }
  const bool pays = small && elements <= kElementsOfBin * double(boxes) * double(bins) * double(channels);
  return pays && !in_vectors<kMapVec<S>>(maps, channels) ? packed_like(workspace, maps, channels)
                                                         : Pyramid<S>{};
}

// Writes the bins of all boxes of at most op.most taps; channels * P * Q < 2^31. packed: of packed_for.
template <typename S>
void gather(Gather<S> op, const Pyramid<S>& packed, int64_t boxes, cudaStream_t stream) {
  constexpr int V = kMapVec<S>;
  const int64_t bins = int64_t{op.tables.y.bins} * op.tables.x.bins;
  const auto boxes_x = static_cast<unsigned>(boxes);
  const auto blocks = [](int64_t count, int64_t each) {
    return static_cast<unsigned>(std::min<int64_t>((count + each - 1) / each, kMostBlocksYZ));
  };
  if (op.channels == 0) return;
  if (packed.levels > 0) {
    pack(op.maps, packed, op.channels, stream);
    op.maps = as_constant(packed);
  } else if (!in_vectors<V>(op.maps, op.channels)) {
    const int64_t count = bins * op.channels,
                  threads = std::min<int64_t>(kGatherThreads, (count + 31) / 32 * 32);
    return launch(gather_elements_kernel<S>, dim3(boxes_x, blocks(count, threads)),
                  static_cast<unsigned>(threads), 0, stream, op);
  }
  const bool direct = in_vectors<V>(op.out, op.channels);
  const int64_t vecs = ceil_div(op.channels, V);
  int64_t along = std::min<int64_t>(vecs, bins == 1 ? kGatherThreads : kGatherLanes);
  while (!direct && along > 1 && along * 16 * bins > kGatherTileBytes) along = ceil_div(along, 2);
  // As many bins at a time as make every round full.
  const int64_t rows = std::min<int64_t>(kGatherRows, kGatherThreads / along);
  const int64_t across = ceil_div(bins, ceil_div(bins, rows));
  const int64_t tile_bins = direct ? 0 : std::min(bins, kGatherTileBytes / (along * 16));
  launch(op.scale == nullptr ? gather_kernel<S, false> : gather_kernel<S, true>,
         dim3(boxes_x, blocks(vecs, along)),
         dim3(static_cast<unsigned>(along), static_cast<unsigned>(across)),
         static_cast<size_t>(along * 16 * tile_bins), stream, op, static_cast<int32_t>(tile_bins),
         Divider(op.tables.x.bins));
}

}  // namespace cfmvit::kernels
