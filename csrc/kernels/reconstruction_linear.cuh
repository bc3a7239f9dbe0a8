// The gradient of projected rows, which takes their place, and its sums by column; gradients of the sum of
// losses times the sum's own. R rows, D width.
#pragma once

#include "kernels/for_each.cuh"
#include "kernels/reconstruction.cuh"

namespace cfmvit::kernels {

constexpr int kRowsOfBlock = 64;  // a chunk of 16,896 rows: two blocks for each of 132 multiprocessors

// Row r of pred becomes grad_output[r] times the gradient of its loss. To row i of `partial` are added the
// sums over rows kRowsOfBlock * i and following, as many.
template <typename S, typename T>
struct ProjectionGradient {
  Pairs<S, T> pairs;
  const acc_t<S>* grad_output;  // (R,)
  S* pred;                      // (R, D), that of `pairs`
  acc_t<S>* losses;             // (R,) or null
  acc_t<S>* partial;            // (R / kRowsOfBlock, D) or null
  int64_t rows;
};

// A block's sums of the gradient by column, of `rows` rows from `grad` on: each lane comes with those of the
// vectors that it holds of its warp's rows, before rounding. What no lane holds is read again, as rounded,
// behind the barriers of what is held.
template <int V, int kHeld, typename S>
__device__ __forceinline__ void add_column_sums(const acc_t<S> (&sums)[kHeld][V], const S* grad, int rows,
                                                int64_t width, acc_t<S>* to) {
  __shared__ acc_t<S> of_warp[kWarps][kLanes * V];
  const int thread = static_cast<int>(threadIdx.y * kLanes + threadIdx.x);
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    const int first = u * kLanes * V;
    if (first >= width) break;
#pragma unroll
    for (int v = 0; v < V; ++v) of_warp[threadIdx.y][threadIdx.x * V + v] = sums[u][v];
    __syncthreads();
    for (int c = thread; c < kLanes * V && first + c < width; c += kThreads) {
      acc_t<S> sum = 0;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) sum += of_warp[warp][c];
      to[first + c] += sum;
    }
    __syncthreads();
  }
  for (int64_t p = kHeld * kLanes + thread; p < width / V; p += kThreads) {
    acc_t<S> sum[V] = {};
    for (int r = 0; r < rows; ++r) {
      const Vec<S, V> some = vec_at<V>(grad + r * width, p);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += some[v];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) to[p * V + v] += sum[v];
  }
}

template <typename S, typename T, int V>
__global__ void __launch_bounds__(kThreads, 2) projection_gradient_kernel(ProjectionGradient<S, T> g) {
  using Row = Pair<S, T, V>;
  const int64_t first = int64_t{blockIdx.x} * kRowsOfBlock, left = g.rows - first, width = g.pairs.width;
  const int rows = left < kRowsOfBlock ? static_cast<int>(left) : kRowsOfBlock;
  acc_t<S> sums[Row::kHeld][V] = {};
  for (int i = static_cast<int>(threadIdx.y); i < rows; i += kWarps) {
    const int64_t row = first + i;
    const Row pair(g.pairs, 0, row);
    const Cosine<acc_t<S>> cosine = pair.cosine(g.pairs.eps);
    if (g.losses && threadIdx.x == 0) g.losses[row] = cosine.loss;
    const acc_t<S> grad_output = g.grad_output[row];
    pair.combine(g.pred + row * width, grad_output * cosine.to_pred, grad_output * cosine.to_target, sums);
  }
  if (g.partial) {
    add_column_sums(sums, g.pred + first * width, rows, width, g.partial + blockIdx.x * width);
  }
}

template <typename S, typename T>
void projection_gradient(const ProjectionGradient<S, T>& g, cudaStream_t stream) {
  dispatch_pair_vec(g.pairs, g.pred, [&](auto v) {
    launch(projection_gradient_kernel<S, T, decltype(v)::value>, grid_size(ceil_div(g.rows, kRowsOfBlock)),
           dim3(kLanes, kWarps), 0, stream, g);
  });
}

// out = factor * in, in vectors of V.
template <typename In, typename Out, int V>
struct Scale {
  const Vec<In, V>* in;
  const acc_t<In>* factor;
  Vec<Out, V>* out;

  __device__ void operator()(int64_t i) const {
    const Vec<In, V> from = in[i];
    Vec<Out, V> to{};
#pragma unroll
    for (int v = 0; v < V; ++v) to.set(v, *factor * from[v]);
    out[i] = to;
  }
};

template <typename In, typename Out>
void scale(const In* in, const acc_t<In>* factor, Out* out, int64_t count, cudaStream_t stream) {
  dispatch_vec<16 / sizeof(In)>(count, {in, out}, {}, {sizeof(In), sizeof(Out)}, [&](auto v) {
    using From = Vec<In, decltype(v)::value>;
    using To = Vec<Out, decltype(v)::value>;
    const Scale<In, Out, decltype(v)::value> body{reinterpret_cast<const From*>(in), factor,
                                                  reinterpret_cast<To*>(out)};
    for_each(count / decltype(v)::value, body, stream);
  });
}

}  // namespace cfmvit::kernels
