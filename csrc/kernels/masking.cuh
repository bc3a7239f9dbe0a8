// Gathering tokens into one or two outputs, and the gradients. Each output has one owner, so there are no
// atomics on floats and the bits are the same on every run. B samples, N tokens, K entries of the index, D
// width.
#pragma once

#include "kernels/inverse_index.cuh"
#include "kernels/partial_sums.cuh"

namespace cfmvit::kernels {

// out[b, e] = tokens[b, n] + keep_pos[b] * pos[n], n = sources(b, e); rows of entries out of range are zero.
template <typename S>
struct GatherTokens {
  Rows<const S> tokens;  // (B, N, D)
  Sources sources;       // (B, K) and (B, M)
  const S* pos;          // (N, D) or null
  const bool* keep_pos;  // (B,) or null: all kept
  Rows<S> out[2];        // (B, K, D) and (B, M, D)
  int64_t batch, num_tokens, width;
};

template <typename S, int V>
__global__ void __launch_bounds__(kThreads, 4) gather_tokens_kernel(GatherTokens<S> g) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y, total = g.sources.total();
  const int64_t b = row / total, e = row - b * total;
  if (b >= g.batch) return;
  const int64_t n = g.sources(b, e);
  const int vecs = static_cast<int>(g.width / V);
  S* to = e < g.sources.entries[0] ? g.out[0].at(b, e) : g.out[1].at(b, e - g.sources.entries[0]);
  if (n < 0 || n >= g.num_tokens) return fill_row<V>(to, acc_t<S>(0), vecs);
  const bool add_pos = g.pos && (!g.keep_pos || g.keep_pos[b]);
  copy_row<V>(to, g.tokens.at(b, n), add_pos ? g.pos + n * g.width : nullptr, vecs);
}

template <typename S>
void gather_tokens(const GatherTokens<S>& g, cudaStream_t stream) {
  const int64_t rows = g.batch * g.sources.total();
  if (rows * g.width == 0) return;
  dispatch_vec<16 / sizeof(S)>(g.width, {g.tokens.data, g.pos, g.out[0].data, g.out[1].data},
                               {g.tokens.sample, g.tokens.token}, {sizeof(S)}, [&](auto v) {
                                 constexpr int V = decltype(v)::value;
                                 const dim3 block = row_block(g.width / V);
                                 launch(gather_tokens_kernel<S, V>, row_grid(rows, block), block, 0, stream,
                                        g);
                               });
}

// grad_tokens[b, n] = sum of grad[b, e] over the entries e that name n, in their order; partial[s, n] = that
// summed over the samples b of partial sum s whose keep_pos is true.
template <typename S>
struct ScatterTokens {
  Rows<const S> grad[2];                      // (B, K, D) and (B, M, D)
  Sources sources;                            // (B, K) and (B, M)
  const InverseEntries* inverse;              // (B, N)
  const bool* keep_pos;                       // (B,) or null: all kept
  S* out;                                     // (B, N, D) or null
  acc_t<S>* partial;                          // (partials, N, D) or null
  int64_t batch, num_tokens, width, samples;  // samples of a partial sum

  CFMVIT_INLINE const S* row(int64_t b, int64_t e) const {
    return e < sources.entries[0] ? grad[0].at(b, e) : grad[1].at(b, e - sources.entries[0]);
  }
};

// A thread owns one vector of one token, and walks the samples of a partial sum, a few at a time.
template <typename S, int V, bool kPositions>
__global__ void __launch_bounds__(kThreads, kPositions ? 3 : 4) scatter_tokens_kernel(ScatterTokens<S> s) {
  constexpr int kAhead = 4;
  const int vecs = static_cast<int>(s.width / V), p = blockIdx.z * blockDim.x + threadIdx.x;
  const int64_t n = int64_t{blockIdx.x} * blockDim.y + threadIdx.y, begin = blockIdx.y * s.samples;
  const int64_t end = begin + s.samples < s.batch ? begin + s.samples : s.batch;
  if (n >= s.num_tokens || p >= vecs) return;
  acc_t<S> total[V] = {};
  for (int64_t first = begin; first < end; first += kAhead) {
    InverseEntries entries[kAhead];
    Vec<S, V> rows[kAhead] = {};
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      entries[u] = first + u < end ? s.inverse[(first + u) * s.num_tokens + n] : InverseEntries{0, -1};
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (entries[u].last >= 0) rows[u] = vec_at<V>(s.row(first + u, entries[u].first), p);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t b = first + u;
      if (b >= end) break;
      if (entries[u].last > entries[u].first) {
        acc_t<S> sum[V];
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = rows[u][v];
        for (int32_t e = entries[u].first; e < entries[u].last;) {
          e = s.sources.next(b, e, n);
          const Vec<S, V> more = vec_at<V>(s.row(b, e), p);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += more[v];
        }
#pragma unroll
        for (int v = 0; v < V; ++v) rows[u].set(v, sum[v]);
      }
      if (s.out) vec_at<V>(s.out + (b * s.num_tokens + n) * s.width, p) = rows[u];
      if constexpr (kPositions) {
        if (s.keep_pos && !s.keep_pos[b]) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) total[v] += rows[u][v];
      }
    }
  }
  if constexpr (kPositions) {
    acc_t<S>* to = s.partial + (blockIdx.y * s.num_tokens + n) * s.width + int64_t{p} * V;
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = total[v];
  }
}

// A grid whose threads own (vector, token) for each partial sum over the samples.
inline dim3 owner_block(int64_t vecs) {
  const int64_t tiles = ceil_div(vecs, 128), lanes = ceil_div(vecs, tiles);
  return dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(kThreads / lanes));
}
inline dim3 owner_grid(int64_t num_tokens, int64_t partials, int64_t vecs, dim3 block) {
  return grid_size(ceil_div(num_tokens, block.y), partials, ceil_div(vecs, block.x));
}

// How many samples each partial sum over the batch adds.
inline int64_t samples_per_partial(int64_t batch, int64_t num_tokens, int64_t width) {
  constexpr int64_t kChannels = 8;  // of a thread, roughly: the answer must not depend on vectors
  return ceil_div(batch, num_partials(batch, num_tokens * ceil_div(width, kChannels)));
}

template <typename S>
void scatter_tokens(ScatterTokens<S> s, cudaStream_t stream) {
  if (s.batch * s.num_tokens * s.width == 0) return;
  constexpr int64_t kSamples = 4;
  const int64_t least = ceil_div(s.batch, kMostBlocksYZ);
  if (!s.partial) s.samples = kSamples < least ? least : kSamples;
  dispatch_vec<16 / sizeof(S)>(
      s.width, {s.grad[0].data, s.grad[1].data, s.out},
      {s.grad[0].sample, s.grad[0].token, s.grad[1].sample, s.grad[1].token}, {sizeof(S)}, [&](auto v) {
        constexpr int V = decltype(v)::value;
        const dim3 block = owner_block(s.width / V);
        const dim3 grid = owner_grid(s.num_tokens, ceil_div(s.batch, s.samples), s.width / V, block);
        launch(s.partial ? scatter_tokens_kernel<S, V, true> : scatter_tokens_kernel<S, V, false>, grid,
               block, 0, stream, s);
      });
}

}  // namespace cfmvit::kernels
