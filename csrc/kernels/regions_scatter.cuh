// Backward passes: the gradient of a map, F'[y, x, c] = sum over boxes and bins of wy * wx * out'[r, p, q,
// c].
//
// A block owns a stretch of a row of a map and some channels, each thread two of them; it looks through the
// boxes of the map in their order for bins that read the row, and adds what they give in shared memory, where
// no other thread writes. So nothing is zeroed beforehand, all of the gradient is written once, there are no
// atomics, and the order of every sum is that of the boxes.
#pragma once

#include "kernels/regions_gather.cuh"
#include "kernels/regions_groups.cuh"

namespace cfmvit::kernels {

constexpr int kScatterThreads = 128, kScatterPixels = 32;

// Channels of a thread: 8 bytes of sums.
template <typename T>
constexpr int kScatterVec = 8 / sizeof(T);

// A bin row of a box that reads the block's row of the map.
template <typename T>
struct BinRow {
  int32_t box, p;
  T weight;
};

// Where `pixel` stands among ascending taps [begin, end): its weight, or zero.
template <typename T>
__device__ T weight_at(const Tap<T>* taps, int32_t begin, int32_t end, int32_t pixel) {
  while (begin < end) {
    const int32_t middle = (begin + end) / 2;
    if (taps[middle].pixel < pixel) {
      begin = middle + 1;
    } else if (taps[middle].pixel > pixel) {
      end = middle;
    } else {
      return taps[middle].weight;
    }
  }
  return 0;
}

template <typename T, typename S, bool kVectorised>
__device__ Vec<T, kScatterVec<T>> load_gradient(const S* at, int64_t stride, int64_t channels) {
  constexpr int V = kScatterVec<T>;
  Vec<T, V> out{};
  if constexpr (kVectorised) {
    const auto vec = *reinterpret_cast<const Vec<S, V>*>(at);
    for (int v = 0; v < V; ++v) out.set(v, static_cast<T>(vec[v]));
  } else {
    for (int v = 0; v < V; ++v) {
      if (v < channels) out.set(v, static_cast<T>(to_acc(at[v * stride])));
    }
  }
  return out;
}

// Adds a bin row to the sums of the thread's channels at pixels [first_pixel, first_pixel + kScatterPixels);
// sums of neighbouring pixels are `step` apart. `at`: the thread's channels of bin (p, 0).
template <typename T, typename S, bool kVectorised>
__device__ void scatter_row(const Tables<T>& tables, const BinRow<T>& row, const Bins<const S>& grad,
                            const S* at, int64_t channels, int32_t first_pixel, Vec<T, kScatterVec<T>>* sums,
                            int step) {
  const int32_t* const begin = tables.x.begins(row.box);
  const Tap<T>* const taps = tables.x.taps(row.box);
  for (int32_t q = 0; q < tables.x.bins; ++q) {
    const int32_t from = begin[q], to = begin[q + 1];
    if (from == to || taps[from].pixel >= first_pixel + kScatterPixels || taps[to - 1].pixel < first_pixel) {
      continue;
    }
    const auto value = load_gradient<T, S, kVectorised>(at + q * grad.x, grad.channel, channels);
    for (int32_t i = from; i < to; ++i) {
      const Tap<T> tap = taps[i];
      const int32_t pixel = tap.pixel - first_pixel;
      if (pixel < 0 || pixel >= kScatterPixels) continue;
      const T weight = row.weight * tap.weight;
      auto& sum = sums[pixel * step];
#pragma unroll
      for (int v = 0; v < kScatterVec<T>; ++v) sum.set(v, sum[v] + weight * value[v]);
    }
  }
}

// The stretches of rows of all maps, in the order of blocks.
template <typename S>
struct Stretches {
  int64_t count = 0;  // below 2^31
  int32_t of_level[kMostLevels] = {};

  explicit Stretches(const Pyramid<S>& maps) {
    for (int l = 0; l < maps.levels; ++l) {
      const int64_t stretches = maps.images * maps.level[l].height * across(maps.level[l]);
      of_level[l] = static_cast<int32_t>(stretches);
      count += stretches;
    }
  }
  CFMVIT_INLINE static int32_t across(const Level<S>& level) {
    return static_cast<int32_t>((level.width + kScatterPixels - 1) / kScatterPixels);
  }
};

// Shared: (kScatterPixels, blockDim.x) vectors of sums. S: type of the gradient of the bins, G: of the maps.
template <typename S, typename G, bool kVectorised>
__global__ void __launch_bounds__(kScatterThreads, 7)
    scatter_kernel(Pyramid<G> maps, Stretches<G> stretches, Tables<acc_t<S>> tables, Groups by_map,
                   Bins<const S> grad, int64_t channels) {
  using T = acc_t<S>;
  constexpr int V = kScatterVec<T>;
  __shared__ BinRow<T> rows[kScatterThreads];
  __shared__ int rows_of_warp[kScatterThreads / 32];
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32, warp = thread / 32;
  Vec<T, V>* const sums = dynamic_shared<Vec<T, V>>() + thread;

  auto stretch = static_cast<int32_t>(blockIdx.x);
  int l = 0;
  while (stretch >= stretches.of_level[l]) stretch -= stretches.of_level[l++];
  const Level<G>& level = maps.level[l];
  const int32_t across = Stretches<G>::across(level), height = static_cast<int32_t>(level.height);
  const int32_t first_pixel = stretch % across * kScatterPixels, y = stretch / across % height;
  const int64_t image = stretch / across / height;
  const int64_t c = (int64_t{blockIdx.y} * threads + thread) * V, mine = channels - c;
  for (int i = 0; i < kScatterPixels; ++i) sums[i * threads] = {};

  const int64_t map = l * maps.images + image, first = by_map.begin[map];
  const auto candidates = static_cast<int32_t>((by_map.begin[map + 1] - first) * tables.y.bins);
  for (int32_t begin = 0; begin < candidates; begin += threads) {
    BinRow<T> row{};
    if (begin + thread < candidates) {
      row.box = by_map.order[first + (begin + thread) / tables.y.bins];
      row.p = (begin + thread) % tables.y.bins;
      const int32_t* const begins = tables.y.begins(row.box) + row.p;
      row.weight = weight_at(tables.y.taps(row.box), begins[0], begins[1], y);
    }
    const unsigned found = __ballot_sync(kAllLanes, row.weight != 0);
    if (lane == 0) rows_of_warp[warp] = __popc(found);
    __syncthreads();
    int at = __popc(found & ((1u << lane) - 1)), count = 0;
    for (int w = 0; w < threads / 32; ++w) {
      if (w < warp) at += rows_of_warp[w];
      count += rows_of_warp[w];
    }
    if (row.weight != 0) rows[at] = row;
    __syncthreads();
    for (int i = 0; i < count && mine > 0; ++i) {
      scatter_row<T, S, kVectorised>(tables, rows[i], grad, grad.at(rows[i].box, rows[i].p, 0, c), mine,
                                     first_pixel, sums, threads);
    }
    __syncthreads();
  }

  const int pixels = static_cast<int>(min(int64_t{kScatterPixels}, level.width - first_pixel));
  G* const out = level.data + image * level.image + y * level.row + int64_t{first_pixel} * level.pixel;
  if constexpr (kVectorised) {
    if (mine <= 0) return;
    for (int i = 0; i < pixels; ++i) {
      Vec<G, V> vec{};
      for (int v = 0; v < V; ++v) vec.set(v, sums[i * threads][v]);
      *reinterpret_cast<Vec<G, V>*>(out + int64_t{i} * level.pixel + c) = vec;
    }
  } else {  // neighbouring threads write neighbours in memory
    __syncthreads();
    const int64_t first_channel = int64_t{blockIdx.y} * threads * V;
    const int present = static_cast<int>(min(int64_t{threads} * V, channels - first_channel));
    const Vec<T, V>* const all = dynamic_shared<Vec<T, V>>();
    for (int i = thread; i < present * pixels; i += threads) {
      const int pixel = level.channel == 1 ? i / present : i % pixels;
      const int channel = level.channel == 1 ? i % present : i / pixels;
      from_acc(all[pixel * threads + channel / V][channel % V],
               out[int64_t{pixel} * level.pixel + (first_channel + channel) * level.channel]);
    }
  }
}

// Writes all of every map. R * P and the number of stretches are below 2^31.
template <typename S, typename G>
void scatter(const Pyramid<G>& maps, const Tables<acc_t<S>>& tables, const Groups& by_map,
             const Bins<const S>& grad, int64_t channels, cudaStream_t stream) {
  constexpr int V = kScatterVec<acc_t<S>>;
  const Stretches<G> stretches(maps);
  const int64_t vecs = (channels + V - 1) / V;
  const int64_t threads = std::min<int64_t>(kScatterThreads, (vecs + 31) / 32 * 32);
  if (channels == 0) return;
  launch(vectorisable<V>(maps, grad, channels) ? scatter_kernel<S, G, true> : scatter_kernel<S, G, false>,
         grid_size(stretches.count, ceil_div(vecs, threads)), static_cast<unsigned>(threads),
         threads * kScatterPixels * sizeof(Vec<acc_t<S>, V>), stream, maps, stretches, tables, by_map, grad,
         channels);
}

}  // namespace cfmvit::kernels
