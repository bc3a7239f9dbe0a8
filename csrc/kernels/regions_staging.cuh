// Rows of embeddings on their way to a matrix product: gathered as tensor cores take them, 16-bit numbers as
// they are, with the inverse norms by which products are to be multiplied; wider ones scaled to norm one.
#pragma once

#include "kernels/vectors.cuh"

namespace cfmvit::kernels {

// (rows, C) of any strides.
template <typename S>
struct Embeds {
  const S* data;
  int64_t row, channel;
};

// Of 16 bytes in a row, or zero where they don't fit.
template <typename S>
uint32_t vecs_of(const Embeds<S>& x, int64_t channels) {
  constexpr int kVec = 16 / sizeof(S);
  if (x.channel != 1 || channels > INT32_MAX) return 0;
  return vecs_fit(kVec, channels, {x.data}, {x.row}, {sizeof(S)}) ? static_cast<uint32_t>(channels / kVec)
                                                                  : 0;
}

// Sum over each kLanes neighbouring lanes.
template <int kLanes, typename Real>
__device__ __forceinline__ Real lane_sum(Real value) {
#pragma unroll
  for (int lane = kLanes / 2; lane; lane /= 2) value += __shfl_xor_sync(kAllLanes, value, lane);
  return value;
}

// By kLanes lanes, summed in float64, whose squares neither overflow nor vanish; the bound is that of
// torch.nn.functional.normalize. Copies the row too, if `to` is not null. A function of its own, as it is
// rare where registers are many.
template <int kLanes, typename S>
__device__ __attribute__((noinline)) acc_t<S> exact_inverse_norm(const S* row, int64_t channel,
                                                                 int64_t channels, S* to) {
  double squares = 0;
#pragma unroll 1
  for (int64_t c = threadIdx.x % kLanes; c < channels; c += kLanes) {
    const S some = row[c * channel];
    if (to != nullptr) to[c] = some;
    squares += double(to_acc(some)) * double(to_acc(some));
  }
  const double inverse = rsqrt(lane_sum<kLanes>(squares));
  return static_cast<acc_t<S>>(inverse < 1e12 ? inverse : 1e12);
}

// To a unit in the last place.
__device__ inline float precise_inverse_root(float x) {
  const float root = rsqrtf(x);
  return std::fma(0.5f * root, std::fma(-x * root, root, 1.0f), root);
}

// Copies a row by kLanes lanes of a warp whose others do the same; returns what its products are to be
// multiplied with. vecs: the row in vectors of 16 bytes, zero where it isn't in whole ones, one after
// another.
template <int kLanes, typename S>
__device__ __forceinline__ acc_t<S> stage_row(const S* from, int64_t channel, int64_t channels, uint32_t vecs,
                                              S* to) {
  const uint32_t lane = threadIdx.x % kLanes;
  if constexpr (std::is_same_v<S, acc_t<S>>) {
    const S inverse = exact_inverse_norm<kLanes>(from, channel, channels, to);
    for (int64_t c = lane; c < channels; c += kLanes) to[c] *= inverse;
    return 1;
  } else {
    constexpr int V = 8;
    float squares = 0;
    // Takes kCount vectors, whose loads are under way at the same time.
    const auto take = [&]<int kCount>(uint32_t p, std::integral_constant<int, kCount>) {
      Vec<S, V> some[kCount];
#pragma unroll
      for (int u = 0; u < kCount; ++u) some[u] = vec_at<V>(from, p + u * kLanes);
#pragma unroll
      for (int u = 0; u < kCount; ++u) {
        vec_at<V>(to, p + u * kLanes) = some[u];
        float sum = some[u][0] * some[u][0];  // exactly: float32 holds a product
#pragma unroll
        for (int v = 1; v < V; ++v) sum = std::fma(some[u][v], some[u][v], sum);
        squares += sum;
      }
    };
    uint32_t p = lane;
    for (; p + 3 * kLanes < vecs; p += 4 * kLanes) take(p, std::integral_constant<int, 4>());
#pragma unroll 1
    for (; p < vecs; p += kLanes) take(p, std::integral_constant<int, 1>());
    squares = lane_sum<kLanes>(squares);
    // No square has vanished that counts, none overflowed, and the bound of norms does not hold.
    const bool usual = squares > 1.1e-24f && squares < INFINITY;
    if (__any_sync(kAllLanes, !usual)) {
      return exact_inverse_norm<kLanes>(from, channel, channels, vecs == 0 ? to : nullptr);
    }
    return precise_inverse_root(squares);
  }
}

}  // namespace cfmvit::kernels
