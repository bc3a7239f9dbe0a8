// Backward passes: the gradient of a map, F'[y, x, c] = sum over boxes and bins of wy * wx * out'[r, p, q,
// c].
//
// A warp owns a few neighbouring pixels of a row of a map and some channels, whose sums are its registers. It
// looks through the boxes of the map in their order: lanes test boxes, then bin rows of those that read the
// pixels, then bins of those rows; what remains is added. So nothing is zeroed beforehand, all of the
// gradient is written once, there are no atomics, and the order of every sum is that of the boxes.
#pragma once

#include "kernels/fast_division.cuh"
#include "kernels/for_each.cuh"
#include "kernels/regions_gather.cuh"
#include "kernels/regions_groups.cuh"

namespace cfmvit::kernels {

constexpr int kScatterThreads = 256, kScatterWarps = kScatterThreads / 32;
constexpr int kScatterPixels = 8;                               // of a warp
constexpr int kScatterAcross = kScatterWarps * kScatterPixels;  // of a block

// The pixels that a box reads, from the first to the last of each axis; last < first where there are none.
struct alignas(16) Span {
  int32_t first_y = INT32_MAX, last_y = -1, first_x = INT32_MAX, last_x = -1;
};

// The boxes of each map in their order, with what they read.
struct Readers {
  Groups by_map;
  Span* span;  // (R,) in the order of by_map
};

inline Readers readers_of(Workspace& workspace, int64_t boxes, int64_t maps) {
  const Groups by_map = groups_of(workspace, boxes, maps);
  return {by_map, workspace.take<Span>(boxes)};
}

template <typename T>
struct MakeSpan {
  Tables<T> tables;
  Readers out;

  __device__ void operator()(int64_t i) const {
    if (i >= out.by_map.begin[out.by_map.count]) return;
    const int32_t box = out.by_map.order[i];
    Span span;
    extend(tables.y, box, span.first_y, span.last_y);
    extend(tables.x, box, span.first_x, span.last_x);
    out.span[i] = span;
  }
  __device__ static void extend(const AxisTables<T>& axis, int32_t box, int32_t& first, int32_t& last) {
    const int32_t* const begin = axis.begins(box);
    const Tap<T>* const taps = axis.taps(box);
    for (int32_t bin = 0; bin < axis.bins; ++bin) {
      if (begin[bin] == begin[bin + 1]) continue;
      first = min(first, taps[begin[bin]].pixel);
      last = max(last, taps[begin[bin + 1] - 1].pixel);
    }
  }
};

template <typename T>
void find_readers(const Tables<T>& tables, int64_t boxes, const Readers& out, cudaStream_t stream) {
  make_groups(tables.map, boxes, out.by_map, stream);
  for_each(boxes, MakeSpan<T>{tables, out}, stream);
}

// The first of ascending taps [begin, end) at `pixel` or after it.
template <typename T>
__device__ int32_t first_tap(const Tap<T>* taps, int32_t begin, int32_t end, int32_t pixel) {
  while (begin < end) {
    const int32_t middle = (begin + end) / 2;
    taps[middle].pixel < pixel ? begin = middle + 1 : end = middle;
  }
  return begin;
}

// What a warp has found so far.
template <typename T>
struct Found {
  int32_t box[64];
  struct {
    int32_t box, p;
    T weight;
  } row[32];                                 // bin rows that read the row of the map
  int64_t bin[32];                           // offsets of the gradients of bins
  alignas(16) T weight[32][kScatterPixels];  // of those at each pixel
};

template <typename S>
CFMVIT_INLINE int32_t scatter_blocks(const Level<S>& level) {
  return static_cast<int32_t>(level.height * ((level.width + kScatterAcross - 1) / kScatterAcross));
}

// Writes values, neighbours in memory, in vectors as wide as their address allows.
template <int N, typename T, typename G>
__device__ void store_neighbours(const T (&value)[kScatterPixels], G* to) {
  if (N > 1 && reinterpret_cast<uintptr_t>(to) % (N * sizeof(G)) != 0) {
    return store_neighbours<(N > 1 ? N / 2 : 1)>(value, to);
  }
#pragma unroll
  for (int first = 0; first < kScatterPixels; first += N) {
    Vec<G, N> vec{};
#pragma unroll
    for (int i = 0; i < N; ++i) vec.set(i, value[first + i]);
    *reinterpret_cast<Vec<G, N>*>(to + first) = vec;
  }
}

// S: type of the gradient of the bins, in vectors; G: of the maps. wide: maps are in vectors.
template <typename S, typename G>
__global__ void __launch_bounds__(kScatterThreads, 2)
    scatter_kernel(Pyramid<G> maps, Tiles tiles, Tables<acc_t<S>> tables, Readers readers, Divider bins_y,
                   Divider bins_x, Bins<const S> grad, int32_t channels, bool wide) {
  using T = acc_t<S>;
  constexpr int V = kMapVec<S>;
  __shared__ Found<T> found_by_warp[kScatterWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  Found<T>& found = found_by_warp[warp];
  const unsigned before = (1u << lane) - 1;

  auto tile = static_cast<int32_t>(blockIdx.x);
  const int l = tiles.level(tile);
  const Level<G>& level = maps.level[l];
  const int32_t width = static_cast<int32_t>(level.width), height = static_cast<int32_t>(level.height);
  const int32_t across = (width + kScatterAcross - 1) / kScatterAcross;
  const int32_t first_pixel = tile % across * kScatterAcross + warp * kScatterPixels;
  const int32_t y = tile / across % height, image = tile / across / height;
  const int32_t c = (blockIdx.y * 32 + lane) * V;
  if (first_pixel >= width) return;

  T sum[kScatterPixels][V] = {};
  // Adds what bins of the lanes in `hits` give.
  const auto add_bins = [&](unsigned hits) {
    constexpr int kAhead = 4;
    while (hits != 0) {
      int hit[kAhead];
      Vec<S, V> value[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        hit[k] = __ffs(static_cast<int>(hits)) - 1;
        hits &= hits - 1;
        if (hit[k] >= 0 && c < channels) {
          value[k] = *reinterpret_cast<const Vec<S, V>*>(grad.data + found.bin[hit[k]] + c);
        }
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (hit[k] < 0) break;
#pragma unroll
        for (int i = 0; i < kScatterPixels; ++i) {
          const T weight = found.weight[hit[k]][i];
          if (weight == 0) continue;  // whose product with what is not finite would be NaN
#pragma unroll
          for (int v = 0; v < V; ++v) sum[i][v] += weight * value[k][v];
        }
      }
    }
  };
  // Adds what the first `count` boxes found give.
  const auto add_boxes = [&](int32_t count) {
    for (int32_t i = 0; i < count * tables.y.bins; i += 32) {
      int32_t box = 0, p = i + lane;
      T weight = 0;
      if (p < count * tables.y.bins) {
        box = found.box[bins_y.split(p)];
        const int32_t* const begin = tables.y.begins(box) + p;
        const Tap<T>* const taps = tables.y.taps(box);
        const int32_t tap = first_tap(taps, begin[0], begin[1], y);
        if (tap < begin[1] && taps[tap].pixel == y) weight = taps[tap].weight;
      }
      const unsigned rows = __ballot_sync(kAllLanes, weight != 0);
      if (weight != 0) found.row[__popc(rows & before)] = {box, p, weight};
      __syncwarp();
      const int32_t bins = __popc(rows) * tables.x.bins;
      for (int32_t j = 0; j < bins; j += 32) {
        int32_t q = j + lane;
        bool hit = false;
        if (q < bins) {
          const auto row = found.row[bins_x.split(q)];
          const int32_t* const begin = tables.x.begins(row.box) + q;
          const Tap<T>* const taps = tables.x.taps(row.box);
          const int32_t end = begin[1], past = first_pixel + kScatterPixels;
          int32_t tap = first_tap(taps, begin[0], end, first_pixel);
          hit = tap < end && taps[tap].pixel < past;
          if (hit) {
            found.bin[lane] = row.box * grad.box + row.p * grad.y + q * grad.x;
            for (int pixel = 0; pixel < kScatterPixels; ++pixel) {
              const bool here = tap < end && taps[tap].pixel == first_pixel + pixel;
              found.weight[lane][pixel] = here ? row.weight * taps[tap].weight : T(0);
              tap += here;
            }
          }
        }
        const unsigned hits = __ballot_sync(kAllLanes, hit);
        __syncwarp();
        add_bins(hits);
        __syncwarp();
      }
      __syncwarp();
    }
  };

  const int64_t map = l * maps.images + image, end = readers.by_map.begin[map + 1];
  int32_t waiting = 0;
  for (int64_t first = readers.by_map.begin[map]; first < end; first += 32) {
    bool reads = false;
    if (first + lane < end) {
      const Span span = readers.span[first + lane];
      reads = span.first_y <= y && y <= span.last_y && span.first_x < first_pixel + kScatterPixels &&
              first_pixel <= span.last_x;
    }
    const unsigned readers_here = __ballot_sync(kAllLanes, reads);
    if (reads) found.box[waiting + __popc(readers_here & before)] = readers.by_map.order[first + lane];
    waiting += __popc(readers_here);
    if (waiting < 32 && first + 32 < end) continue;
    __syncwarp();
    add_boxes(waiting);
    waiting = 0;
  }

  const int pixels = min(kScatterPixels, width - first_pixel);
  G* const out = level.data + image * level.image + y * level.row + int64_t{first_pixel} * level.pixel +
                 c * level.channel;
  if (wide) {
    if (c >= channels) return;
#pragma unroll
    for (int i = 0; i < kScatterPixels; ++i) {
      if (i >= pixels) break;
      Vec<G, V> vec{};
#pragma unroll
      for (int v = 0; v < V; ++v) vec.set(v, sum[i][v]);
      *reinterpret_cast<Vec<G, V>*>(out + i * int64_t{level.pixel}) = vec;
    }
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (c + v >= channels) break;
    G* const row = out + v * level.channel;
    if (pixels == kScatterPixels && level.pixel == 1) {
      T value[kScatterPixels];
#pragma unroll
      for (int i = 0; i < kScatterPixels; ++i) value[i] = sum[i][v];
      store_neighbours<kMapVec<G>>(value, row);
    } else {
#pragma unroll
      for (int i = 0; i < kScatterPixels; ++i) {
        if (i < pixels) from_acc(sum[i][v], row[i * int64_t{level.pixel}]);
      }
    }
  }
}

// Bins as maps of one level, an image a box; where there is one a box, a row.
template <typename S>
Pyramid<const S> as_maps(const Bins<const S>& bins, int64_t boxes, int64_t height, int64_t width) {
  if (bins.x > INT32_MAX) throw std::length_error("grad must have neighbours less than 2**31 elements apart");
  Pyramid<const S> out{};
  out.levels = 1;
  const bool one = height * width == 1;
  out.images = one ? 1 : boxes;
  out.level[0] = {bins.data,
                  one ? boxes : height,
                  width,
                  bins.box,
                  one ? bins.box : bins.y,
                  static_cast<int32_t>(bins.x),
                  bins.channel,
                  1};
  return out;
}

// A place for a copy of the gradient of bins in whole vectors where it does not lie so; else without levels.
template <typename S>
Pyramid<S> packed_for(Workspace& workspace, const Bins<const S>& grad, int64_t boxes,
                      const Sampling& sampling, int64_t channels) {
  if (in_vectors<kMapVec<S>>(grad, channels)) return {};
  const int64_t height = sampling.merge ? 1 : sampling.bins_y, width = sampling.merge ? 1 : sampling.bins_x;
  return packed_like(workspace, as_maps(grad, boxes, height, width), channels);
}

// Writes all of every map. R * P and the number of blocks are below 2^31. packed: of packed_for.
template <typename S, typename G>
void scatter(const Pyramid<G>& maps, const Tables<acc_t<S>>& tables, const Readers& readers,
             Bins<const S> grad, const Pyramid<S>& packed, int64_t boxes, int32_t channels,
             cudaStream_t stream) {
  constexpr int V = kMapVec<S>;
  if (channels == 0) return;
  if (packed.levels > 0) {
    const Level<S>& to = packed.level[0];
    pack(as_maps(grad, boxes, tables.y.bins, tables.x.bins), packed, channels, stream);
    const bool one = tables.y.bins * tables.x.bins == 1;
    grad = {to.data, one ? to.row : to.image, to.row, to.pixel, 1};
  }
  const Tiles tiles = Tiles::of(maps, [](const auto& level) { return scatter_blocks(level); });
  launch(scatter_kernel<S, G>, grid_size(tiles.count, ceil_div(channels, 32 * V)), kScatterThreads, 0, stream,
         maps, tiles, tables, readers, Divider(tables.y.bins), Divider(tables.x.bins), grad, channels,
         in_vectors<V>(maps, channels));
}

}  // namespace cfmvit::kernels
