// Gathering tokens, and the gradients: each output has one owner, so there are no atomics and the bits are
// the same on every run. B samples, N places, K entries of the index, D width; threads move packs of V
// neighbouring channels.
#pragma once

#include <cmath>
#include <type_traits>

#include "for_each.cuh"
#include "index.h"

namespace cfmvit::kernels {

// Up to 16 bytes of a row, moved at once.
template <typename S, int V>
struct alignas(sizeof(S) * V) Pack {
  S at[V];
};

// Rows of a (B, N, D) tensor whose channels are neighbours.
template <typename S>
struct Rows {
  S* data;
  int64_t sample, token;

  template <int V>
  __device__ auto& pack(int64_t b, int64_t n, int64_t p) const {
    using P = std::conditional_t<std::is_const_v<S>, const Pack<std::remove_const_t<S>, V>, Pack<S, V>>;
    return reinterpret_cast<P*>(data + b * sample + n * token)[p];
  }
};

// out[b, j] = tokens[b, index[b, j]] + coins[b] * pos[index[b, j]]; rows of entries out of range are NaN.
template <typename S, int V>
struct GatherTokens {
  Rows<const S> tokens;  // (B, N, D)
  Index index;           // (B, K)
  const S* pos;          // (N, D) or null
  const bool* coins;     // (B,) or null: all kept
  Rows<S> out;           // (B, K, D)
  int64_t places, entries, packs;

  __device__ void operator()(int64_t i) const {
    const int64_t p = i % packs, j = i / packs % entries, b = i / packs / entries, n = index(b, j);
    Pack<S, V> row;
    if (n < 0 || n >= places) {
      for (int v = 0; v < V; ++v) narrow(Sum<S>(NAN), row.at[v]);
    } else {
      row = tokens.template pack<V>(b, n, p);
      if (pos && (!coins || coins[b])) {
        const auto& added = reinterpret_cast<const Pack<S, V>*>(pos)[n * packs + p];
        for (int v = 0; v < V; ++v) narrow(widen(row.at[v]) + widen(added.at[v]), row.at[v]);
      }
    }
    out.template pack<V>(b, j, p) = row;
  }
};

// grad_tokens[b, n] = sum of grad[b, j] over the entries j that name n, in their order. Each thread looks
// through the sample's K entries, the same for a whole warp: a few hundred cached words, against sorting or a
// table in memory.
template <typename S, int V>
struct GatherTokensBackward {
  Rows<const S> grad;  // (B, K, D)
  Index index;         // (B, K)
  Rows<S> out;         // (B, N, D)
  int64_t places, entries, packs;

  __device__ void operator()(int64_t i) const {
    const int64_t p = i % packs, n = i / packs % places, b = i / packs / places;
    Sum<S> sum[V] = {};
    for (int64_t j = 0; j < entries; ++j) {
      if (index(b, j) != n) continue;
      const auto& row = grad.template pack<V>(b, j, p);
      for (int v = 0; v < V; ++v) sum[v] += widen(row.at[v]);
    }
    for (int v = 0; v < V; ++v) narrow(sum[v], out.template pack<V>(b, n, p).at[v]);
  }
};

constexpr int64_t kSamplesPerPart = 64;

// part[s, n] = sum of grad_tokens[b, n] over the samples b of part s whose coin keeps positions.
template <typename S>
struct PositionParts {
  const S* grad_tokens;  // (B, N * D)
  const bool* coins;     // (B,) or null
  Sum<S>* part;          // (parts, N * D)
  int64_t batch, row;    // row = N * D

  __device__ void operator()(int64_t i) const {
    const int64_t s = i / row, c = i % row, first = s * kSamplesPerPart;
    const int64_t end = first + kSamplesPerPart < batch ? first + kSamplesPerPart : batch;
    Sum<S> sum = 0;
    for (int64_t b = first; b < end; ++b) {
      if (!coins || coins[b]) sum += widen(grad_tokens[b * row + c]);
    }
    part[i] = sum;
  }
};

// grad_pos = sum of the parts, in their order.
template <typename S>
struct PositionSum {
  const Sum<S>* part;  // (parts, N * D)
  S* grad_pos;         // (N * D)
  int64_t parts, row;

  __device__ void operator()(int64_t c) const {
    Sum<S> sum = 0;
    for (int64_t s = 0; s < parts; ++s) sum += part[s * row + c];
    narrow(sum, grad_pos[c]);
  }
};

// Launchers: the widest packs that the width, the strides and the addresses allow.
template <typename S, typename Launch>
void with_packs(int64_t width, const void* a, const void* b, int64_t strides, const Launch& launch) {
  constexpr int kMost = 16 / sizeof(S);
  const auto low = (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % 16;
  if (width % kMost == 0 && strides % kMost == 0 && low == 0) {
    launch(std::integral_constant<int, kMost>());
  } else {
    launch(std::integral_constant<int, 1>());
  }
}

template <typename S>
void gather_tokens(Rows<const S> tokens, Index index, const S* pos, const bool* coins, S* out, int64_t batch,
                   int64_t places, int64_t entries, int64_t width, cudaStream_t stream) {
  const auto addresses = reinterpret_cast<uintptr_t>(out) | reinterpret_cast<uintptr_t>(pos);
  with_packs<S>(width, tokens.data, reinterpret_cast<const void*>(addresses), tokens.sample | tokens.token,
                [&](auto v) {
                  constexpr int V = decltype(v)::value;
                  const GatherTokens<S, V> body{
                      tokens, index, pos, coins, {out, entries * width, width}, places, entries, width / V};
                  for_each(batch * entries * (width / V), body, stream);
                });
}

template <typename S>
void gather_tokens_backward(Rows<const S> grad, Index index, S* out, int64_t batch, int64_t places,
                            int64_t entries, int64_t width, cudaStream_t stream) {
  with_packs<S>(width, grad.data, out, grad.sample | grad.token, [&](auto v) {
    constexpr int V = decltype(v)::value;
    const GatherTokensBackward<S, V> body{grad,   index,   {out, places * width, width},
                                          places, entries, width / V};
    for_each(batch * places * (width / V), body, stream);
  });
}

inline int64_t position_parts(int64_t batch) { return (batch + kSamplesPerPart - 1) / kSamplesPerPart; }

// part: scratch of position_parts(batch) * row sums
template <typename S>
void sum_positions(const S* grad_tokens, const bool* coins, Sum<S>* part, S* grad_pos, int64_t batch,
                   int64_t row, cudaStream_t stream) {
  const int64_t parts = position_parts(batch);
  for_each(parts * row, PositionParts<S>{grad_tokens, coins, part, batch, row}, stream);
  for_each(row, PositionSum<S>{part, grad_pos, parts, row}, stream);
}

}  // namespace cfmvit::kernels
