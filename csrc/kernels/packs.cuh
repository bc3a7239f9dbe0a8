// Rows of channels moved in packs of up to 16 bytes, and the shapes of the grids that move them. Positions
// inside a row are 32-bit, offsets of rows 64-bit. Knows nothing of torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <type_traits>

#include "portable.cuh"
#include "views.h"

namespace cfmvit::kernels {

constexpr int kThreads = 256;
constexpr int kLanes = 32;

// V neighbouring channels, moved by instructions of up to 16 bytes.
template <typename S, int V>
struct alignas(sizeof(S) * V < 16 ? sizeof(S) * V : 16) Pack {
  S at[V];
};

template <int V, typename S>
__device__ __forceinline__ const Pack<S, V>& pack(const S* row, int p) {
  return reinterpret_cast<const Pack<S, V>*>(row)[p];
}
template <int V, typename S>
__device__ __forceinline__ Pack<S, V>& pack(S* row, int p) {
  return reinterpret_cast<Pack<S, V>*>(row)[p];
}

// to = from + added, or = from without `added`, by the threads of one threadIdx.y. Loads of several packs are
// issued before the first store, so that enough bytes are in flight.
template <int V, typename S>
__device__ __forceinline__ void copy_row(S* to, const S* from, const S* added, int packs) {
  constexpr int kAhead = 4;
  const int step = blockDim.x;
  for (int first = threadIdx.x; first < packs; first += kAhead * step) {
    Pack<S, V> row[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (first + u * step < packs) row[u] = pack<V>(from, first + u * step);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int p = first + u * step;
      if (p >= packs) break;
      if (added) {
        const Pack<S, V> more = pack<V>(added, p);
#pragma unroll
        for (int v = 0; v < V; ++v) narrow(widen(row[u].at[v]) + widen(more.at[v]), row[u].at[v]);
      }
      pack<V>(to, p) = row[u];
    }
  }
}

template <int V, typename S>
__device__ __forceinline__ void fill_row(S* to, Sum<S> value, int packs) {
  Pack<S, V> all;
#pragma unroll
  for (int v = 0; v < V; ++v) narrow(value, all.at[v]);
  for (int p = threadIdx.x; p < packs; p += blockDim.x) pack<V>(to, p) = all;
}

// Calls launch(V) with the widest packs that the width, the strides and the addresses allow: kMost channels,
// or 1.
template <int kMost, typename Launch>
void with_packs(int64_t width, std::initializer_list<const void*> addresses,
                std::initializer_list<int64_t> strides, std::initializer_list<int> sizes,
                const Launch& launch) {
  uintptr_t low = 0;
  int64_t steps = width;
  for (const void* address : addresses) low |= reinterpret_cast<uintptr_t>(address);
  for (const int64_t stride : strides) steps |= stride;
  bool wide = steps % kMost == 0;
  for (const int size : sizes) wide = wide && low % (size * kMost < 16 ? size * kMost : 16) == 0;
  wide ? launch(std::integral_constant<int, kMost>()) : launch(std::integral_constant<int, 1>());
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A number of blocks as a grid takes it.
inline unsigned grid_size(int64_t blocks) {
  if (blocks > INT32_MAX) throw std::length_error("a grid of more than 2**31 - 1 blocks");
  return static_cast<unsigned>(blocks);
}

// A block of whole rows: as many lanes a row as it has packs, up to a warp.
inline dim3 row_block(int64_t packs) {
  unsigned lanes = 1;
  while (lanes < kLanes && lanes < packs) lanes *= 2;
  return dim3(lanes, kThreads / lanes);
}
inline dim3 row_grid(int64_t rows, dim3 block) { return dim3(grid_size(ceil_div(rows, block.y))); }

}  // namespace cfmvit::kernels
