// The decoder's input, and its gradients. B samples, N tokens, K visible tokens, D width.
#pragma once

#include "kernels/masking.cuh"

namespace cfmvit::kernels {

// out[b, n] = (k < K ? visible[b, k] : mask) + pos[n], k = restore[b, n]; rows of entries out of range are
// zero.
template <typename S>
struct Restore {
  Rows<const S> visible;  // (B, K, D)
  const S* mask;          // (D,)
  Index restore;          // (B, N)
  const S* pos;           // (N, D) or null
  Rows<S> out;            // (B, N, D)
  int64_t batch, kept, num_tokens, width;
};

template <typename S, int V>
__global__ void __launch_bounds__(kThreads, 4) restore_tokens_kernel(Restore<S> r) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y, b = row / r.num_tokens,
                n = row - b * r.num_tokens;
  if (b >= r.batch) return;
  const int64_t k = r.restore(b, n);
  const int vecs = static_cast<int>(r.width / V);
  if (k < 0 || k >= r.num_tokens) return fill_row<V>(r.out.at(b, n), acc_t<S>(0), vecs);
  copy_row<V>(r.out.at(b, n), k < r.kept ? r.visible.at(b, k) : r.mask, r.pos ? r.pos + n * r.width : nullptr,
              vecs);
}

template <typename S>
void restore_tokens(const Restore<S>& r, cudaStream_t stream) {
  const int64_t rows = r.batch * r.num_tokens;
  if (rows * r.width == 0) return;
  dispatch_vec<16 / sizeof(S)>(r.width, {r.visible.data, r.mask, r.pos, r.out.data},
                               {r.visible.sample, r.visible.token}, {sizeof(S)}, [&](auto v) {
                                 constexpr int V = decltype(v)::value;
                                 const dim3 block = row_block(r.width / V);
                                 launch(restore_tokens_kernel<S, V>, row_grid(rows, block), block, 0, stream,
                                        r);
                               });
}

// The gradients of visible, and partial sums over the samples: of the rows of masked tokens, and of all rows.
template <typename S>
struct RestoreBackward {
  Rows<const S> grad;             // (B, N, D)
  Sources restore;                // (B, N)
  const InverseEntries* inverse;  // (B, K): which of the N tokens restore visible token k
  S* visible;                     // (B, K, D)
  acc_t<S>*masks, *partial;       // (partials, N, D); partial may be null
  int64_t batch, kept, num_tokens, width, samples;
};

// A thread owns one vector of one token of each sample of a partial sum, and of the visible token restored
// there.
template <typename S, int V>
__global__ void __launch_bounds__(kThreads, 3) restore_tokens_backward_kernel(RestoreBackward<S> r) {
  constexpr int kAhead = 4;
  const int vecs = static_cast<int>(r.width / V), p = blockIdx.z * blockDim.x + threadIdx.x;
  const int64_t n = int64_t{blockIdx.x} * blockDim.y + threadIdx.y, begin = blockIdx.y * r.samples;
  const int64_t end = begin + r.samples < r.batch ? begin + r.samples : r.batch;
  if (n >= r.num_tokens || p >= vecs) return;
  acc_t<S> masked[V] = {}, all[V] = {};
  for (int64_t first = begin; first < end; first += kAhead) {
    Vec<S, V> rows[kAhead] = {};
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (first + u < end) rows[u] = vec_at<V>(r.grad.at(first + u, n), p);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t b = first + u;
      if (b >= end) break;
      const int64_t k = r.restore(b, n);
      if (n < r.kept &&
          r.inverse[b * r.kept + n].last < 0) {  // not a permutation: nothing restores visible token n
        vec_at<V>(r.visible + (b * r.kept + n) * r.width, p) = Vec<S, V>{};
      }
      if (k < 0 || k >= r.num_tokens) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const acc_t<S> value = rows[u][v];
        all[v] += value;
        if (k >= r.kept) masked[v] += value;
      }
      if (k >= r.kept) continue;
      const InverseEntries entries = r.inverse[b * r.kept + k];
      if (entries.first != n) continue;
      if (entries.last > n) {  // not a permutation: several entries restore visible token k
        acc_t<S> sum[V];
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = rows[u][v];
        for (int32_t e = entries.first; e < entries.last;) {
          e = r.restore.next(b, e, k);
          const Vec<S, V> more = vec_at<V>(r.grad.at(b, e), p);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += more[v];
        }
#pragma unroll
        for (int v = 0; v < V; ++v) rows[u].set(v, sum[v]);
      }
      vec_at<V>(r.visible + (b * r.kept + k) * r.width, p) = rows[u];
    }
  }
  const int64_t at = (blockIdx.y * r.num_tokens + n) * r.width + int64_t{p} * V;
#pragma unroll
  for (int v = 0; v < V; ++v) r.masks[at + v] = masked[v];
  if (!r.partial) return;
#pragma unroll
  for (int v = 0; v < V; ++v) r.partial[at + v] = all[v];
}

template <typename S>
void restore_tokens_backward(const RestoreBackward<S>& r, cudaStream_t stream) {
  if (r.batch * r.num_tokens * r.width == 0) return;
  dispatch_vec<16 / sizeof(S)>(
      r.width, {r.grad.data, r.visible}, {r.grad.sample, r.grad.token}, {sizeof(S)}, [&](auto v) {
        constexpr int V = decltype(v)::value;
        const dim3 block = owner_block(r.width / V);
        const dim3 grid = owner_grid(r.num_tokens, ceil_div(r.batch, r.samples), r.width / V, block);
        launch(restore_tokens_backward_kernel<S, V>, grid, block, 0, stream, r);
      });
}

}  // namespace cfmvit::kernels
