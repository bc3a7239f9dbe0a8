// Copies of maps in which the channels of a pixel are neighbours in memory, in whole vectors of 16 bytes, as
// the kernels that read a pixel more than once want them. Tiles go through shared memory: neighbouring
// threads read neighbouring pixels, and write neighbouring channels.
#pragma once

#include <algorithm>

#include "kernels/regions_tables.cuh"
#include "kernels/vectors.cuh"

namespace cfmvit::kernels {

// Channels that a thread reads at once.
template <typename S>
constexpr int kMapVec = 16 / sizeof(S);

constexpr int kPackThreads = 256, kPackPixels = 32;
template <typename S>
constexpr int kPackChannels = kMapVec<S> * kPackThreads / kPackPixels;

template <typename S>
int64_t whole_vectors(int64_t channels) {
  return (channels + kMapVec<S> - 1) / kMapVec<S> * kMapVec<S>;
}

// How the maps of a pyramid are cut into tiles, level after level; the tiles of an image are `across(level)`.
struct Tiles {
  int64_t count = 0;  // below 2^31
  int32_t of_level[kMostLevels] = {};

  template <typename S, typename Across>
  static Tiles of(const Pyramid<S>& maps, const Across& across) {
    Tiles out;
    for (int l = 0; l < maps.levels; ++l) {
      const int64_t tiles = maps.images * across(maps.level[l]);
      out.of_level[l] = static_cast<int32_t>(tiles);
      out.count += tiles;
    }
    return out;
  }

  // The level of a tile, whose number becomes that among the level's.
  CFMVIT_INLINE int level(int32_t& tile) const {
    int l = 0;
    while (tile >= of_level[l]) tile -= of_level[l++];
    return l;
  }
};

template <typename S>
CFMVIT_INLINE int32_t packs_across(const Level<S>& level) {
  return static_cast<int32_t>((level.height * level.width + kPackPixels - 1) / kPackPixels);
}

template <typename S>
__global__ void __launch_bounds__(kPackThreads, 6)
    pack_kernel(Pyramid<const S> from, Pyramid<S> to, Tiles tiles, int32_t channels) {
  constexpr int V = kMapVec<S>, kChannels = kPackChannels<S>, kRows = kPackThreads / kPackPixels;
  struct alignas(16) Chunk {
    S at[V];
  };
  __shared__ S tile[kChannels][kPackPixels + (sizeof(S) < 4 ? 4 / sizeof(S) : 1)];
  const int thread = static_cast<int>(threadIdx.x);
  const int32_t chunk = thread % kRows * V, mine = thread / kRows;

  auto number = static_cast<int32_t>(blockIdx.x);
  const int l = tiles.level(number);
  const Level<const S>& in = from.level[l];
  const Level<S>& out = to.level[l];
  const int32_t across = packs_across(in), width = static_cast<int32_t>(in.width);
  const int32_t image = number / across, first = number % across * kPackPixels;
  const auto pixels = static_cast<int32_t>(min(int64_t{kPackPixels}, in.height * in.width - first));
  const int32_t lane = thread % kPackPixels, row = thread / kPackPixels, pixel = first + lane;
  const S* const source =
      in.data + image * in.image + pixel / width * in.row + int64_t{pixel % width} * in.pixel;
  S* const target = out.data + image * out.image + int64_t{first + mine} * out.pixel;
  for (int32_t c = blockIdx.y * kChannels; c < out.pixel; c += gridDim.y * kChannels) {
    S value[V];
    const S* at = source + (c + row) * in.channel;
    const int32_t left = lane < pixels ? channels - c - row : 0;
#pragma unroll
    for (int k = 0; k < V; ++k, at += kRows * in.channel) value[k] = k * kRows < left ? *at : S{};
#pragma unroll
    for (int k = 0; k < V; ++k) tile[k * kRows + row][lane] = value[k];
    __syncthreads();
    if (mine < pixels && c + chunk < out.pixel) {
      Chunk packed;
#pragma unroll
      for (int v = 0; v < V; ++v) packed.at[v] = tile[chunk + v][mine];
      *reinterpret_cast<Chunk*>(target + c + chunk) = packed;
    }
    __syncthreads();
  }
}

// A place for the copy.
template <typename S>
Pyramid<S> packed_like(Workspace& workspace, const Pyramid<const S>& maps, int64_t channels) {
  const int64_t pixel = whole_vectors<S>(channels);
  Pyramid<S> out{};
  out.levels = maps.levels;
  out.images = maps.images;
  for (int l = 0; l < maps.levels; ++l) {
    const Level<const S>& on = maps.level[l];
    const int64_t row = on.width * pixel, image = on.height * row;
    out.level[l] = {workspace.take<S>(maps.images * image),
                    on.height,
                    on.width,
                    image,
                    row,
                    static_cast<int32_t>(pixel),
                    1,
                    on.scale};
  }
  return out;
}

template <typename S>
Pyramid<const S> as_constant(const Pyramid<S>& maps) {
  Pyramid<const S> out{};
  out.levels = maps.levels;
  out.images = maps.images;
  for (int l = 0; l < maps.levels; ++l) {
    const Level<S>& on = maps.level[l];
    out.level[l] = {on.data, on.height, on.width, on.image, on.row, on.pixel, on.channel, on.scale};
  }
  return out;
}

// Fills `to`, of packed_like. Maps have fewer than 2^31 pixels.
template <typename S>
void pack(const Pyramid<const S>& from, const Pyramid<S>& to, int32_t channels, cudaStream_t stream) {
  const Tiles tiles = Tiles::of(from, [](const auto& level) { return packs_across(level); });
  // A block finds its pixels once for all channels, unless tiles are too few to fill a GPU.
  constexpr int64_t kMany = 1024;
  const int64_t stretches = tiles.count < kMany ? ceil_div(to.level[0].pixel, kPackChannels<S>) : 1;
  launch(pack_kernel<S>, grid_size(tiles.count, std::min(stretches, kMostBlocksYZ)), kPackThreads, 0, stream,
         from, to, tiles, channels);
}

}  // namespace cfmvit::kernels
