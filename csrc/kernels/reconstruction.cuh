// The cosine losses: a warp reads each pair of rows once, holds it in registers where it fits, and writes the
// loss or the row's gradient. B samples, N tokens, M masked ones, D width.
#pragma once

#include "kernels/inverse_index.cuh"
#include "kernels/warp_sum.cuh"
#include "plain/cosine.h"

namespace cfmvit::kernels {

constexpr int kWarps = kThreads / kLanes;

// Rows of pred and target.
template <typename S, typename T>
struct Pairs {
  Rows<const S> pred;    // (B, N, D)
  Rows<const T> target;  // (B, N, D)
  int64_t width;
  double eps;
};

// One pair of rows, spread over the lanes of a warp.
template <typename S, typename T, int V>
class Pair {
 public:
  // Vectors that a lane holds: rows of 1,536 halves, of 768 floats.
  static constexpr int kHeld = sizeof(acc_t<S>) == 8 ? 2 : 6;

  __device__ __forceinline__ Pair(const Pairs<S, T>& pairs, int64_t b, int64_t n)
      : pred_(pairs.pred.at(b, n)), target_(pairs.target.at(b, n)), vecs_(static_cast<int>(pairs.width / V)) {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (position(u) < vecs_) x_[u] = vec_at<V>(pred_, position(u)), y_[u] = vec_at<V>(target_, position(u));
    }
  }

  __device__ __forceinline__ Cosine<acc_t<S>> cosine(double eps) const {
    acc_t<S> sums[3] = {};  // pred.target, pred.pred, target.target
    each([&](int, int, const Vec<S, V>& x, const Vec<T, V>& y) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const acc_t<S> a = x[v], b = static_cast<acc_t<S>>(y[v]);
        sums[0] += a * b;
        sums[1] += a * a;
        sums[2] += b * b;
      }
    });
#pragma unroll
    for (int i = 0; i < 3; ++i) sums[i] = warp_sum(sums[i]);
    return {sums, eps};
  }

  // to = a * pred + b * target; `to` may be pred. What is held of it is added to `sums`, of kHeld vectors,
  // before it is rounded.
  __device__ __forceinline__ void combine(S* to, acc_t<S> a, acc_t<S> b,
                                          acc_t<S> (*sums)[V] = nullptr) const {
    each([&](int u, int p, const Vec<S, V>& x, const Vec<T, V>& y) {
      Vec<S, V> out{};
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const acc_t<S> value = a * x[v] + b * static_cast<acc_t<S>>(y[v]);
        if (sums && u < kHeld) sums[u][v] += value;
        out.set(v, value);
      }
      vec_at<V>(to, p) = out;
    });
  }

 private:
  __device__ __forceinline__ static int position(int u) { return static_cast<int>(threadIdx.x) + u * kLanes; }
  // Calls visit(u, position, pred, target) for each of the lane's vectors, with u = kHeld if not held.
  template <typename Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (position(u) < vecs_) visit(u, position(u), x_[u], y_[u]);
    }
    for (int p = position(kHeld); p < vecs_; p += kLanes)
      visit(kHeld, p, vec_at<V>(pred_, p), vec_at<V>(target_, p));
  }

  const S* pred_;
  const T* target_;
  int vecs_;
  Vec<S, V> x_[kHeld];
  Vec<T, V> y_[kHeld];
};

// losses[b, j] = 1 - cos of rows n = index[b, j]; rows out of range are zero, which have loss 1.
template <typename S, typename T>
struct CosineLosses {
  Pairs<S, T> pairs;
  Index index;  // (B, M); without data: all rows
  acc_t<S>* losses;
  int64_t batch, num_tokens, masked;
};

template <typename S, typename T, int V>
__global__ void __launch_bounds__(kThreads, 3) cosine_losses_kernel(CosineLosses<S, T> c) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y, b = row / c.masked, j = row - b * c.masked;
  if (b >= c.batch) return;
  const int64_t n = c.index.data ? c.index(b, j) : j;
  acc_t<S> loss = 1;
  if (n >= 0 && n < c.num_tokens) loss = Pair<S, T, V>(c.pairs, b, n).cosine(c.pairs.eps).loss;
  if (threadIdx.x == 0) c.losses[row] = loss;
}

// out[b, n] = the sum of grad_output[b, j] over the entries j that name row n, times the gradient of its
// loss; zero where none does.
template <typename S, typename T>
struct CosineGradient {
  Pairs<S, T> pairs;
  Sources sources;                // (B, M); without data: all rows
  const InverseEntries* inverse;  // (B, N), or null without an index
  const acc_t<S>* grad_output;    // (B, M)
  S* out;                         // (B, N, D)
  int64_t batch, num_tokens, masked;
};

template <typename S, typename T, int V>
__global__ void __launch_bounds__(kThreads, 2) cosine_gradient_kernel(CosineGradient<S, T> c) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y, b = row / c.num_tokens,
                n = row - b * c.num_tokens;
  if (b >= c.batch) return;
  const auto self = static_cast<int32_t>(n);
  const InverseEntries entries = c.inverse ? c.inverse[row] : InverseEntries{self, self};
  if (entries.last < 0)
    return fill_row<V>(c.out + row * c.pairs.width, acc_t<S>(0), static_cast<int>(c.pairs.width / V));
  acc_t<S> grad_output = c.grad_output[b * c.masked + entries.first];
  for (int32_t e = entries.first; e < entries.last;) {
    e = c.sources.next(b, e, n);
    grad_output += c.grad_output[b * c.masked + e];
  }
  const Pair<S, T, V> pair(c.pairs, b, n);
  const Cosine<acc_t<S>> cosine = pair.cosine(c.pairs.eps);
  pair.combine(c.out + row * c.pairs.width, grad_output * cosine.to_pred, grad_output * cosine.to_target);
}

template <typename S, typename T, typename Launch>
void dispatch_pair_vec(const Pairs<S, T>& p, const void* out, const Launch& launch) {
  constexpr int kMost = 16 / (sizeof(S) > sizeof(T) ? sizeof(S) : sizeof(T));
  dispatch_vec<kMost>(p.width, {p.pred.data, p.target.data, out},
                      {p.pred.sample, p.pred.token, p.target.sample, p.target.token}, {sizeof(S), sizeof(T)},
                      launch);
}

template <typename S, typename T>
void cosine_losses(const CosineLosses<S, T>& c, cudaStream_t stream) {
  const dim3 block(kLanes, kWarps);
  dispatch_pair_vec(c.pairs, nullptr, [&](auto v) {
    launch(cosine_losses_kernel<S, T, decltype(v)::value>, row_grid(c.batch * c.masked, block), block, 0,
           stream, c);
  });
}

template <typename S, typename T>
void cosine_gradient(const CosineGradient<S, T>& c, cudaStream_t stream) {
  const dim3 block(kLanes, kWarps);
  dispatch_pair_vec(c.pairs, c.out, [&](auto v) {
    launch(cosine_gradient_kernel<S, T, decltype(v)::value>, row_grid(c.batch * c.num_tokens, block), block,
           0, stream, c);
  });
}

}  // namespace cfmvit::kernels
