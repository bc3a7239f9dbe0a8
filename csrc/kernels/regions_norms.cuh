// Tokens normalised, one warp a token: the factors of a forward pass, and the gradient through them.
#pragma once

#include "kernels/regions_tables.cuh"
#include "kernels/vectors.cuh"
#include "kernels/warp_sum.cuh"

namespace cfmvit::kernels {

// The bound of torch.nn.functional.normalize.
template <typename T>
constexpr T kSmallestNorm = T(1e-12);

template <typename T>
__device__ T inverse_root(T x) {
#ifdef __CUDACC__
  return rsqrt(x);
#else
  return 1 / std::sqrt(x);
#endif
}

// Of the sum of squares, spread over the lanes of a warp.
template <typename Sum>
__device__ Sum inverse_norm(Sum squares) {
  const Sum inverse = inverse_root(warp_sum(squares)), most = 1 / kSmallestNorm<Sum>;
  return inverse < most ? inverse : most;
}

// Sum: the type of the sum of squares.
template <typename S, typename Sum = acc_t<S>>
__device__ acc_t<S> inverse_norm(const S* token, int64_t stride, int64_t channels) {
  Sum sum = 0;
  for (int64_t c = threadIdx.x % 32; c < channels; c += 32) {
    const Sum x = to_acc(token[c * stride]);
    sum += x * x;
  }
  return static_cast<acc_t<S>>(inverse_norm(sum));
}

// In vectors: channels are neighbours, `vecs` of V of them.
template <int V, typename S>
__device__ acc_t<S> inverse_norm_of(const S* row, int vecs) {
  double sum = 0;
  for (int p = static_cast<int>(threadIdx.x) % 32; p < vecs; p += 32) {
    const Vec<S, V> some = vec_at<V>(row, p);
#pragma unroll
    for (int v = 0; v < V; ++v) sum += double(some[v]) * double(some[v]);
  }
  return static_cast<acc_t<S>>(inverse_norm(sum));
}

// Runs body(i) for i in [0, count), a warp each; no loop around it, for its state would be spilled at the
// calls of the square root. count < 2**34.
template <typename Body>
__global__ void __launch_bounds__(256) for_each_warp_kernel(Body body, int64_t count) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x / 32} + threadIdx.x / 32;
  if (i < count) body(i);
}
template <typename Body>
void for_each_warp(int64_t count, const Body& body, cudaStream_t stream) {
  launch(for_each_warp_kernel<Body>, static_cast<unsigned>((count + 7) / 8), 256, 0, stream, body, count);
}

// Level 0 of the maps -> out (images, height * width).
template <typename S>
struct InverseNorms {
  Level<const S> tokens;
  acc_t<S>* out;
  int64_t channels;

  __device__ void operator()(int64_t i) const {
    const int64_t grid = tokens.height * tokens.width, image = i / grid;
    const auto pixel = static_cast<uint32_t>(i - image * grid), width = static_cast<uint32_t>(tokens.width);
    const int64_t y = pixel / width, x = pixel % width;
    const S* const token = tokens.data + image * tokens.image + y * tokens.row + x * tokens.pixel;
    const acc_t<S> inverse = inverse_norm(token, tokens.channel, channels);
    if (threadIdx.x % 32 == 0) out[i] = inverse;
  }
};

// Rows of a matrix of these strides, in vectors of V -> out (rows,). Norms are summed in float64: those of
// float32 can't overflow there.
template <typename S, int V>
struct RowNorms {
  const S* rows;
  int64_t row, channel;
  acc_t<S>* out;
  int64_t channels;

  __device__ void operator()(int64_t i) const {
    const S* const mine = rows + i * row;
    const acc_t<S> inverse = V > 1 ? inverse_norm_of<V>(mine, static_cast<int>(channels / V))
                                   : inverse_norm<S, double>(mine, channel, channels);
    if (threadIdx.x % 32 == 0) out[i] = inverse;
  }
};

template <typename S>
void row_norms(const S* x, int64_t rows, int64_t row, int64_t channel, acc_t<S>* out, int64_t channels,
               cudaStream_t stream) {
  const auto run = [&](auto v) {
    for_each_warp(rows, RowNorms<S, decltype(v)::value>{x, row, channel, out, channels}, stream);
  };
  constexpr int kMost = 16 / sizeof(S);
  channel == 1 && channels <= INT32_MAX ? dispatch_vec<kMost>(channels, {x}, {row}, {sizeof(S)}, run)
                                        : run(std::integral_constant<int, 1>());
}

// Rows of a matrix of these strides scaled to norm one -> out (rows, channels).
template <typename S>
struct Normalize {
  const S* rows;
  int64_t row, channel;
  S* out;
  int64_t channels;

  __device__ void operator()(int64_t i) const {
    const S* const from = rows + i * row;
    const acc_t<S> inverse = inverse_norm<S, double>(from, channel, channels);
    for (int64_t c = threadIdx.x % 32; c < channels; c += 32) {
      from_acc(to_acc(from[c * channel]) * inverse, out[i * channels + c]);
    }
  }
};

// With u = F / |F| and g the gradient of u, that of F is (g - u <u, g>) / |F|. grad: contiguous (images,
// height * width, channels); may be `out`'s own memory.
template <typename S>
struct Unnormalize {
  Level<const S> tokens;
  const acc_t<S>* grad;
  Level<S> out;
  int64_t channels;

  __device__ void operator()(int64_t i) const {
    using T = acc_t<S>;
    const int64_t grid = tokens.height * tokens.width, image = i / grid;
    const auto pixel = static_cast<uint32_t>(i - image * grid), width = static_cast<uint32_t>(tokens.width);
    const int64_t y = pixel / width, x = pixel % width;
    const S* const token = tokens.data + image * tokens.image + y * tokens.row + x * tokens.pixel;
    S* const target = out.data + image * out.image + y * out.row + x * out.pixel;
    const T* const g = grad + i * channels;
    const T inverse = inverse_norm(token, tokens.channel, channels);
    T along = 0;
    for (int64_t c = threadIdx.x % 32; c < channels; c += 32) {
      along += to_acc(token[c * tokens.channel]) * g[c];
    }
    along = warp_sum(along) * inverse * inverse;
    if (inverse >= 1 / kSmallestNorm<T>) along = 0;  // where the bound holds, the norm is a constant
    for (int64_t c = threadIdx.x % 32; c < channels; c += 32) {
      from_acc((g[c] - along * to_acc(token[c * tokens.channel])) * inverse, target[c * out.channel]);
    }
  }
};

}  // namespace cfmvit::kernels
