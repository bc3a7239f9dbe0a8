// Tokens normalised, one warp a token: the factors of a forward pass, and the gradient through them.
#pragma once

#include "kernels/for_each.cuh"
#include "kernels/regions_tables.cuh"
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

template <typename S>
__device__ acc_t<S> inverse_norm(const S* token, int64_t stride, int64_t channels) {
  acc_t<S> sum = 0;
  for (int64_t c = threadIdx.x % 32; c < channels; c += 32) {
    const acc_t<S> x = to_acc(token[c * stride]);
    sum += x * x;
  }
  return inverse_norm(sum);
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
