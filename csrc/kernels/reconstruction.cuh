// The cosine losses: a warp reads each pair of rows once, holds it in registers where it fits, and writes the
// loss or the row's gradient. B samples, N places, M masked tokens, D width.
#pragma once

#include "kernels/inverse_index.cuh"
#include "plain/cosine.h"

namespace cfmvit::kernels {

constexpr int kWarps = kThreads / kLanes;

// Sum over the lanes, the same bits in each.
template <typename Real>
__device__ __forceinline__ Real warp_sum(Real value) {
#pragma unroll
  for (int lane = kLanes / 2; lane; lane /= 2) value += __shfl_xor_sync(kAllLanes, value, lane);
  return value;
}

// Rows of pred and target, and the bias that is added to pred's, if any.
template <typename S, typename T>
struct Pairs {
  Rows<const S> pred;    // (B, N, D)
  Rows<const T> target;  // (B, N, D)
  const S* bias;         // (D,) or null
  int64_t width;
  double eps;
};

// One pair of rows, spread over the lanes of a warp.
template <typename S, typename T, int V>
class Pair {
 public:
  __device__ __forceinline__ Pair(const Pairs<S, T>& pairs, int64_t b, int64_t n)
      : pred_(pairs.pred.at(b, n)),
        target_(pairs.target.at(b, n)),
        bias_(pairs.bias),
        packs_(static_cast<int>(pairs.width / V)) {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (place(u) < packs_) x_[u] = pack<V>(pred_, place(u)), y_[u] = pack<V>(target_, place(u));
    }
  }

  __device__ __forceinline__ Cosine<Sum<S>> cosine(double eps) const {
    Sum<S> sums[3] = {};  // pred.target, pred.pred, target.target
    each([&](int p, const Pack<S, V>& x, const Pack<T, V>& y) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Sum<S> a = pred(x, p, v), b = static_cast<Sum<S>>(y[v]);
        sums[0] += a * b;
        sums[1] += a * a;
        sums[2] += b * b;
      }
    });
#pragma unroll
    for (int i = 0; i < 3; ++i) sums[i] = warp_sum(sums[i]);
    return {sums, eps};
  }

  // to = a * pred + b * target; `to` may be pred.
  __device__ __forceinline__ void combine(S* to, Sum<S> a, Sum<S> b) const {
    each([&](int p, const Pack<S, V>& x, const Pack<T, V>& y) {
      Pack<S, V> out{};
#pragma unroll
      for (int v = 0; v < V; ++v) {
        out.set(v, a * pred(x, p, v) + b * static_cast<Sum<S>>(y[v]));
      }
      pack<V>(to, p) = out;
    });
  }

 private:
  static constexpr int kHeld =
      sizeof(Sum<S>) == 8 ? 3 : 6;  // packs a lane: rows of 1,536 halves, of 768 floats

  __device__ __forceinline__ static int place(int u) { return static_cast<int>(threadIdx.x) + u * kLanes; }
  __device__ __forceinline__ Sum<S> pred(const Pack<S, V>& x, int p, int v) const {
    return bias_ ? x[v] + pack<V>(bias_, p)[v] : x[v];
  }
  template <typename Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (place(u) < packs_) visit(place(u), x_[u], y_[u]);
    }
    for (int p = place(kHeld); p < packs_; p += kLanes) visit(p, pack<V>(pred_, p), pack<V>(target_, p));
  }

  const S* pred_;
  const T* target_;
  const S* bias_;
  int packs_;
  Pack<S, V> x_[kHeld];
  Pack<T, V> y_[kHeld];
};

// losses[b, j] = 1 - cos of rows n = index[b, j]; rows out of range are zero, which have loss 1.
template <typename S, typename T>
struct CosineLosses {
  Pairs<S, T> pairs;
  Index index;  // (B, M); without data: all rows
  Sum<S>* losses;
  int64_t batch, places, masked;
};

template <typename S, typename T, int V>
__global__ void __launch_bounds__(kThreads, 3) cosine_losses_kernel(CosineLosses<S, T> c) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y, b = row / c.masked, j = row - b * c.masked;
  if (b >= c.batch) return;
  const int64_t n = c.index.data ? c.index(b, j) : j;
  Sum<S> loss = 1;
  if (n >= 0 && n < c.places) loss = Pair<S, T, V>(c.pairs, b, n).cosine(c.pairs.eps).loss;
  if (threadIdx.x == 0) c.losses[row] = loss;
}

// out[b, n] = the sum of upstream[b, j] over the entries j that name row n, times the gradient of its loss;
// zero
template <typename S, typename T>
struct CosineGradient {
  Pairs<S, T> pairs;
  Sources sources;         // (B, M); without data: all rows
  const Named* named;      // (B, N), or null without an index
  const Sum<S>* upstream;  // (B, M)
  S* out;                  // (B, N, D), may be pred
  int64_t batch, places, masked;
};

template <typename S, typename T, int V>
__global__ void __launch_bounds__(kThreads, 2) cosine_gradient_kernel(CosineGradient<S, T> c) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y, b = row / c.places, n = row - b * c.places;
  if (b >= c.batch) return;
  S* to = c.out + row * c.pairs.width;
  const auto self = static_cast<int32_t>(n);
  const Named named = c.named ? c.named[row] : Named{self, self};
  if (named.last < 0) return fill_row<V>(to, Sum<S>(0), static_cast<int>(c.pairs.width / V));
  Sum<S> upstream = c.upstream[b * c.masked + named.first];
  for (int32_t e = named.first; e < named.last;) {
    e = c.sources.next(b, e, n);
    upstream += c.upstream[b * c.masked + e];
  }
  const Pair<S, T, V> pair(c.pairs, b, n);
  const Cosine<Sum<S>> cosine = pair.cosine(c.pairs.eps);
  pair.combine(to, upstream * cosine.to_pred, upstream * cosine.to_target);
}

template <typename S, typename T, typename Launch>
void with_pair_packs(const Pairs<S, T>& p, const void* out, const Launch& launch) {
  constexpr int kMost = 16 / (sizeof(S) > sizeof(T) ? sizeof(S) : sizeof(T));
  with_packs<kMost>(p.width, {p.pred.data, p.target.data, p.bias, out},
                    {p.pred.sample, p.pred.token, p.target.sample, p.target.token}, {sizeof(S), sizeof(T)},
                    launch);
}

template <typename S, typename T>
void cosine_losses(const CosineLosses<S, T>& c, cudaStream_t stream) {
  const dim3 block(kLanes, kWarps);
  with_pair_packs(c.pairs, nullptr, [&](auto v) {
    launch(cosine_losses_kernel<S, T, decltype(v)::value>, row_grid(c.batch * c.masked, block), block, 0,
           stream, c);
  });
}

template <typename S, typename T>
void cosine_gradient(const CosineGradient<S, T>& c, cudaStream_t stream) {
  const dim3 block(kLanes, kWarps);
  with_pair_packs(c.pairs, c.out, [&](auto v) {
    launch(cosine_gradient_kernel<S, T, decltype(v)::value>, row_grid(c.batch * c.places, block), block, 0,
           stream, c);
  });
}

}  // namespace cfmvit::kernels
