// Sums of exponentials relative to the largest, in units of log 2, which spares each exponential a product.
#pragma once

#include <cmath>
#include <limits>

#include "kernels/warp_sum.cuh"

namespace cfmvit::kernels {

constexpr double kLog2E = 1.4426950408889634;

// 2^x to about 2 units in the last place for x near zero; what is below 1e-38 is zero.
__device__ inline float fast_exp2(float x) {
#ifdef __CUDACC__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return std::exp2(x);
#endif
}
__device__ inline double fast_exp2(double x) { return std::exp2(x); }

template <typename T>
constexpr T kLowest = std::numeric_limits<T>::lowest();

// The largest of some numbers and the sum of 2^(x - largest), NaN where one of them is NaN or infinity. It
// begins with the lowest finite number, so that minus infinity adds nothing.
template <typename T>
struct SumOfExponentials {
  T largest = kLowest<T>, sum = 0;

  // Adds x[i] * scale, scale being positive.
  template <int N>
  __device__ __forceinline__ void add(const T (&x)[N], T scale) {
    constexpr int kChains = N < 4 ? N : 4;  // additions under way at a time
    T most[kChains], added[kChains];
#pragma unroll
    for (int i = 0; i < N; ++i) most[i % kChains] = i < kChains ? x[i] : std::fmax(x[i], most[i % kChains]);
#pragma unroll
    for (int k = 1; k < kChains; ++k) most[0] = std::fmax(most[0], most[k]);
    const T before = largest;
    largest = std::fmax(most[0] * scale, largest);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const T power = fast_exp2(std::fma(x[i], scale, -largest));
      added[i % kChains] = i < kChains ? power : added[i % kChains] + power;
    }
#pragma unroll
    for (int k = 1; k < kChains; ++k) added[0] += added[k];
    sum = sum * fast_exp2(before - largest) + added[0];
  }
  __device__ T log2() const { return largest + std::log2(sum); }

  // The sum of 2^(x - other), other being no smaller than the largest.
  __device__ T sum_below(T other) const { return sum * fast_exp2(largest - other); }
};

// Joins those of a warp's lanes, the same bits in each.
template <typename T>
__device__ __forceinline__ SumOfExponentials<T> join_warp(const SumOfExponentials<T>& mine) {
  SumOfExponentials<T> all{mine.largest, 0};
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    all.largest = std::fmax(all.largest, __shfl_xor_sync(kAllLanes, all.largest, lane));
  }
  all.sum = warp_sum(mine.sum_below(all.largest));
  return all;
}

// Joins those of all threads of a block of kWarps warps, in an order that the block's size alone decides.
template <int kWarps, typename T>
__device__ SumOfExponentials<T> join_block(const SumOfExponentials<T>& mine) {
  __shared__ T largest[kWarps], sum[kWarps];
  const SumOfExponentials<T> of_warp = join_warp(mine);
  if (threadIdx.x % 32 == 0) {
    largest[threadIdx.x / 32] = of_warp.largest;
    sum[threadIdx.x / 32] = of_warp.sum;
  }
  __syncthreads();
  SumOfExponentials<T> all;
  for (int w = 0; w < kWarps; ++w) all.largest = std::fmax(all.largest, largest[w]);
  for (int w = 0; w < kWarps; ++w) all.sum += SumOfExponentials<T>{largest[w], sum[w]}.sum_below(all.largest);
  __syncthreads();
  return all;
}

}  // namespace cfmvit::kernels
