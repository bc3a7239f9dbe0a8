// Rows of channels moved in vectors of up to 16 bytes, and the shapes of the grids that move them. Positions
// inside a row are 32-bit, offsets of rows 64-bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels/portable.cuh"
#include "plain/views.h"

namespace cfmvit::kernels {

constexpr int kThreads = 256;
constexpr int kLanes = 32;

// The greatest power of two that divides it, up to 16.
constexpr int vec_alignment(int bytes) { return (bytes & -bytes) < 16 ? bytes & -bytes : 16; }

// V neighbouring channels, moved by instructions of up to 16 bytes; elements are read and set in the
// accumulation type.
template <typename S, int V, bool kInWords = (sizeof(S) < 4 && sizeof(S) * V % 4 == 0)>
struct alignas(vec_alignment(sizeof(S) * V)) Vec {
  S at[V];

  CFMVIT_INLINE S element(int v) const { return at[v]; }
  CFMVIT_INLINE auto operator[](int v) const { return to_acc(at[v]); }
  template <typename Real>
  CFMVIT_INLINE void set(int v, Real value) {
    from_acc(value, at[v]);
  }
};

// Numbers of less than 32 bits stay in words: each would take a register of its own.
template <typename S, int V>
struct alignas(vec_alignment(sizeof(S) * V)) Vec<S, V, true> {
  static constexpr int kBits = 8 * sizeof(S), kPerWord = 32 / kBits;
  uint32_t words[V / kPerWord];

  CFMVIT_INLINE S element(int v) const {
    const uint32_t bits = words[v / kPerWord] >> v % kPerWord * kBits;
    if constexpr (std::is_same_v<S, uint8_t>) {
      return static_cast<uint8_t>(bits);
    } else {
      return S{static_cast<uint16_t>(bits)};
    }
  }
  CFMVIT_INLINE float operator[](int v) const { return to_acc(element(v)); }
  CFMVIT_INLINE void set(int v, float value) {
    constexpr uint32_t kMask = (uint32_t{1} << kBits) - 1;
    S rounded;
    from_acc(value, rounded);
    const int shift = v % kPerWord * kBits;
    uint32_t& word = words[v / kPerWord];
    word = (word & ~(kMask << shift)) | uint32_t{rounded.bits} << shift;
  }
};

template <int V, typename S>
__device__ __forceinline__ const Vec<S, V>& vec_at(const S* row, int p) {
  return reinterpret_cast<const Vec<S, V>*>(row)[p];
}
template <int V, typename S>
__device__ __forceinline__ Vec<S, V>& vec_at(S* row, int p) {
  return reinterpret_cast<Vec<S, V>*>(row)[p];
}

// to = from + added, or = from without `added`, by the threads of one threadIdx.y. Loads of several vectors
// are issued before the first store, so that enough bytes are in flight.
template <int V, typename S>
__device__ __forceinline__ void copy_row(S* to, const S* from, const S* added, int vecs) {
  constexpr int kAhead = 4;
  const int step = blockDim.x;
  for (int first = threadIdx.x; first < vecs; first += kAhead * step) {
    Vec<S, V> row[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (first + u * step < vecs) row[u] = vec_at<V>(from, first + u * step);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int p = first + u * step;
      if (p >= vecs) break;
      if (added) {
        const Vec<S, V> more = vec_at<V>(added, p);
#pragma unroll
        for (int v = 0; v < V; ++v) row[u].set(v, row[u][v] + more[v]);
      }
      vec_at<V>(to, p) = row[u];
    }
  }
}

template <int V, typename S>
__device__ __forceinline__ void fill_row(S* to, acc_t<S> value, int vecs) {
  Vec<S, V> all{};
#pragma unroll
  for (int v = 0; v < V; ++v) all.set(v, value);
  for (int p = threadIdx.x; p < vecs; p += blockDim.x) vec_at<V>(to, p) = all;
}

// Whether the width, the strides and the addresses allow vectors of v elements of each of these sizes.
inline bool vecs_fit(int v, int64_t width, std::initializer_list<const void*> addresses,
                     std::initializer_list<int64_t> strides, std::initializer_list<int> sizes) {
  uintptr_t low = 0;
  int64_t steps = width;
  for (const void* address : addresses) low |= reinterpret_cast<uintptr_t>(address);
  for (const int64_t stride : strides) steps |= stride;
  bool fit = steps % v == 0;
  for (const int size : sizes) fit = fit && low % vec_alignment(size * v) == 0;
  return fit;
}

// Calls launch(V) with kMost channels a vector where they fit, else with 1.
template <int kMost, typename Launch>
void dispatch_vec(int64_t width, std::initializer_list<const void*> addresses,
                  std::initializer_list<int64_t> strides, std::initializer_list<int> sizes,
                  const Launch& launch) {
  vecs_fit(kMost, width, addresses, strides, sizes) ? launch(std::integral_constant<int, kMost>())
                                                    : launch(std::integral_constant<int, 1>());
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Numbers of blocks as a grid takes them.
constexpr int64_t kMostBlocksYZ = 65535;
inline dim3 grid_size(int64_t x, int64_t y = 1, int64_t z = 1) {
  if (x > INT32_MAX || y > kMostBlocksYZ || z > kMostBlocksYZ) {
    throw std::length_error("sizes must fit a grid, of at most 2**31 - 1, 65535 and 65535 blocks, got (" +
                            std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")");
  }
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// A block of whole rows: as many lanes a row as it has vectors, up to a warp.
inline dim3 row_block(int64_t vecs) {
  unsigned lanes = 1;
  while (lanes < kLanes && lanes < vecs) lanes *= 2;
  return dim3(lanes, kThreads / lanes);
}
inline dim3 row_grid(int64_t rows, dim3 block) { return grid_size(ceil_div(rows, block.y)); }

}  // namespace cfmvit::kernels
