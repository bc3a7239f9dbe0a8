// Gathering tokens into one or two places, and the gradients. Each output has one owner, so there are no
// atomics on floats and the bits are the same on every run. B samples, N places, K entries of the index, D
// width.
#pragma once

#include "kernels/inverse_index.cuh"
#include "kernels/partial_sums.cuh"

namespace cfmvit::kernels {

// out[b, e] = tokens[b, n] + coins[b] * pos[n], n = sources(b, e); rows of entries out of range are zero.
template <typename S>
struct GatherTokens {
  Rows<const S> tokens;  // (B, N, D)
  Sources sources;       // (B, K) and (B, M)
  const S* pos;          // (N, D) or null
  const bool* coins;     // (B,) or null: all kept
  Rows<S> out[2];        // (B, K, D) and (B, M, D)
  int64_t batch, places, width;
};

template <typename S, int V>
__global__ void __launch_bounds__(kThreads, 4) gather_tokens_kernel(GatherTokens<S> g) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y, total = g.sources.total();
  const int64_t b = row / total, e = row - b * total;
  if (b >= g.batch) return;
  const int64_t n = g.sources(b, e);
  const int packs = static_cast<int>(g.width / V);
  S* to = e < g.sources.entries[0] ? g.out[0].at(b, e) : g.out[1].at(b, e - g.sources.entries[0]);
  if (n < 0 || n >= g.places) return fill_row<V>(to, Sum<S>(0), packs);
  const bool placed = g.pos && (!g.coins || g.coins[b]);
  copy_row<V>(to, g.tokens.at(b, n), placed ? g.pos + n * g.width : nullptr, packs);
}

template <typename S>
void gather_tokens(const GatherTokens<S>& g, cudaStream_t stream) {
  const int64_t rows = g.batch * g.sources.total();
  if (rows * g.width == 0) return;
  with_packs<16 / sizeof(S)>(g.width, {g.tokens.data, g.pos, g.out[0].data, g.out[1].data},
                             {g.tokens.sample, g.tokens.token}, {sizeof(S)}, [&](auto v) {
                               constexpr int V = decltype(v)::value;
                               const dim3 block = row_block(g.width / V);
                               launch(gather_tokens_kernel<S, V>, row_grid(rows, block), block, 0, stream, g);
                             });
}

// grad_tokens[b, n] = sum of grad[b, e] over the entries e that name n, in their order; part[s, n] = sum of
// that over the samples b of part s whose coin keeps positions.
template <typename S>
struct ScatterTokens {
  Rows<const S> grad[2];                  // (B, K, D) and (B, M, D)
  Sources sources;                        // (B, K) and (B, M)
  const Named* named;                     // (B, N)
  const bool* coins;                      // (B,) or null: all kept
  S* out;                                 // (B, N, D) or null
  Sum<S>* part;                           // (parts, N, D) or null
  int64_t batch, places, width, samples;  // samples a part

  CFMVIT_INLINE const S* row(int64_t b, int64_t e) const {
    return e < sources.entries[0] ? grad[0].at(b, e) : grad[1].at(b, e - sources.entries[0]);
  }
};

// A thread owns one pack of one place, and walks the samples of a part, a few at a time.
template <typename S, int V, bool kPositions>
__global__ void __launch_bounds__(kThreads, kPositions ? 3 : 4) scatter_tokens_kernel(ScatterTokens<S> s) {
  constexpr int kAhead = 4;
  const int packs = static_cast<int>(s.width / V), p = blockIdx.z * blockDim.x + threadIdx.x;
  const int64_t n = int64_t{blockIdx.x} * blockDim.y + threadIdx.y, begin = blockIdx.y * s.samples;
  const int64_t end = begin + s.samples < s.batch ? begin + s.samples : s.batch;
  if (n >= s.places || p >= packs) return;
  Sum<S> total[V] = {};
  for (int64_t first = begin; first < end; first += kAhead) {
    Named named[kAhead];
    Pack<S, V> rows[kAhead] = {};
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      named[u] = first + u < end ? s.named[(first + u) * s.places + n] : Named{0, -1};
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (named[u].last >= 0) rows[u] = pack<V>(s.row(first + u, named[u].first), p);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t b = first + u;
      if (b >= end) break;
      if (named[u].last > named[u].first) {
        Sum<S> sum[V];
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = rows[u][v];
        for (int32_t e = named[u].first; e < named[u].last;) {
          e = s.sources.next(b, e, n);
          const Pack<S, V> more = pack<V>(s.row(b, e), p);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += more[v];
        }
#pragma unroll
        for (int v = 0; v < V; ++v) rows[u].set(v, sum[v]);
      }
      if (s.out) pack<V>(s.out + (b * s.places + n) * s.width, p) = rows[u];
      if constexpr (kPositions) {
        if (s.coins && !s.coins[b]) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) total[v] += rows[u][v];
      }
    }
  }
  if constexpr (kPositions) {
    Sum<S>* to = s.part + (blockIdx.y * s.places + n) * s.width + int64_t{p} * V;
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = total[v];
  }
}

// A grid whose threads own (pack, place) for each part of the samples.
inline dim3 owner_block(int64_t packs) {
  const int64_t tiles = ceil_div(packs, 128), lanes = ceil_div(packs, tiles);
  return dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(kThreads / lanes));
}
inline dim3 owner_grid(int64_t places, int64_t parts, int64_t packs, dim3 block) {
  return dim3(grid_size(ceil_div(places, block.y)), grid_size(parts), grid_size(ceil_div(packs, block.x)));
}

// How many samples make a part of the sums over the batch.
inline int64_t samples_per_part(int64_t batch, int64_t places, int64_t width) {
  constexpr int64_t kChannels = 8;  // of a thread, roughly: the answer must not depend on packs
  return ceil_div(batch, sum_parts(batch, places * ceil_div(width, kChannels)));
}

template <typename S>
void scatter_tokens(ScatterTokens<S> s, cudaStream_t stream) {
  if (s.batch * s.places * s.width == 0) return;
  constexpr int64_t kSamples = 4, kMostParts = 65535;
  if (!s.part)
    s.samples = kSamples < ceil_div(s.batch, kMostParts) ? ceil_div(s.batch, kMostParts) : kSamples;
  with_packs<16 / sizeof(S)>(
      s.width, {s.grad[0].data, s.grad[1].data, s.out},
      {s.grad[0].sample, s.grad[0].token, s.grad[1].sample, s.grad[1].token}, {sizeof(S)}, [&](auto v) {
        constexpr int V = decltype(v)::value;
        const dim3 block = owner_block(s.width / V);
        const dim3 grid = owner_grid(s.places, ceil_div(s.batch, s.samples), s.width / V, block);
        launch(s.part ? scatter_tokens_kernel<S, V, true> : scatter_tokens_kernel<S, V, false>, grid, block,
               0, stream, s);
      });
}

}  // namespace cfmvit::kernels
