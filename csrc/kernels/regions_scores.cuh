// Detection scores from products of embeddings, a block a region: logits, their softmaxes, the geometric
// mean, its normalisation over the labels and the background, and objectness, in three readings of the rows
// that stay in a core's L1 cache.
#pragma once

#include <limits>

#include "kernels/vectors.cuh"
#include "kernels/warp_sum.cuh"

namespace cfmvit::kernels {

constexpr int kScoreThreads = 64;  // more would repeat the sums that threads exchange

// Products of a tower's embeddings with those of the texts, (R, 1 + n), the background first. Rows begin at
// multiples of 16 bytes, as `inverse` and `exponent` of the texts do.
template <typename T>
struct Products {
  const T* data;  // null where there is no tower
  int64_t row;
  const T* inverse;      // (R,) inverse norms of the tower's embeddings
  const T* temperature;  // ()
};

template <typename T>
struct Scores {
  Products<T> detector, vlm;
  const T* inverse;     // (1 + n,) inverse norms of the texts
  const T* exponent;    // (1 + n,), of the background 0
  const T* objectness;  // (R,) or null
  int64_t objectness_stride;
  double power;
  bool renormalize;
  T* out;  // (R, n) contiguous
  int32_t texts;
};

// Logits are kept in units of log 2, which spares each exponential a product.
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

// The largest of some numbers and the sum of 2^(x - largest), NaN where one of them is NaN or infinity. It
// begins with the lowest finite number, so that minus infinity adds nothing.
template <typename T>
struct SumOfExponentials {
  T largest = std::numeric_limits<T>::lowest(), sum = 0;

  template <int N>
  __device__ void add(const T (&x)[N]) {
    const T before = largest;
#pragma unroll
    for (int i = 0; i < N; ++i) largest = std::fmax(x[i], largest);
    sum *= fast_exp2(before - largest);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += fast_exp2(x[i] - largest);
  }
  __device__ T log2() const { return largest + std::log2(sum); }

  // The sum of 2^(x - other), other being no smaller than the largest.
  __device__ T sum_below(T other) const { return sum * fast_exp2(largest - other); }
};

// Joins those of all threads, in an order that the block's size alone decides.
template <typename T>
__device__ SumOfExponentials<T> join_block(SumOfExponentials<T> mine) {
  constexpr int kWarps = kScoreThreads / 32;
  __shared__ T largest[kWarps], sum[kWarps];
  SumOfExponentials<T> all;
  all.largest = mine.largest;
  for (int step = 16; step > 0; step /= 2) {
    all.largest = std::fmax(all.largest, __shfl_xor_sync(kAllLanes, all.largest, step));
  }
  mine.sum = warp_sum(mine.sum_below(all.largest));
  mine.largest = all.largest;
  if (threadIdx.x % 32 == 0) {
    largest[threadIdx.x / 32] = mine.largest;
    sum[threadIdx.x / 32] = mine.sum;
  }
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) all.largest = std::fmax(all.largest, largest[w]);
  for (int w = 0; w < kWarps; ++w) all.sum += SumOfExponentials<T>{largest[w], sum[w]}.sum_below(all.largest);
  __syncthreads();
  return all;
}

// The first `there` of V numbers, read as one.
template <int V, typename T>
__device__ __forceinline__ void load_numbers(const T* from, int there, T (&to)[V]) {
  if (there >= V) {
    const auto vec = *reinterpret_cast<const Vec<T, V>*>(from);
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = vec[v];
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = v < there ? from[v] : T(0);
  }
}

// kBoth: whether there is a vlm. kept: whether shared memory holds a row of the results; else it is kept in
// the results themselves.
template <typename T, bool kBoth>
__global__ void __launch_bounds__(kScoreThreads, sizeof(T) < 8 ? 8 : 4)
    scores_kernel(Scores<T> op, bool kept) {
  constexpr int V = 16 / sizeof(T);
  const int64_t region = blockIdx.x;
  const int32_t texts = op.texts, thread = static_cast<int32_t>(threadIdx.x);
  const T factor = T(kLog2E) * op.detector.inverse[region] / *op.detector.temperature;
  const T vlm_factor = kBoth ? T(kLog2E) * op.vlm.inverse[region] / *op.vlm.temperature : T(0);
  T* const out = op.out + region * (texts - 1) - 1;  // of text j
  T* const row = kept ? dynamic_shared<T>() : out;
  // Logits of the first `there` of V texts from the j-th on.
  const auto logits_of = [&](int32_t j, int there, T(&logit)[V], T(&vlm)[V]) {
    T inverse[V];
    load_numbers(op.inverse + j, there, inverse);
    load_numbers(op.detector.data + region * op.detector.row + j, there, logit);
    if (kBoth) load_numbers(op.vlm.data + region * op.vlm.row + j, there, vlm);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      logit[v] *= inverse[v] * factor;
      if (kBoth) vlm[v] *= inverse[v] * vlm_factor;
    }
  };
  const auto leave_out = [](int there, T(&x)[V]) {  // what is beyond the last text
#pragma unroll
    for (int v = 1; v < V; ++v) {
      if (v >= there) x[v] = -INFINITY;
    }
  };

  // Calls run(j, there) for this thread's vectors of texts, of all of which but the last V are there.
  const auto for_vectors = [&](const auto& run) {
    int32_t j = thread * V;
    for (; j <= texts - V; j += kScoreThreads * V) run(j, V);
    if (j < texts) run(j, texts - j);
  };

  SumOfExponentials<T> partial, vlm_partial;
  for_vectors([&](int32_t j, int there) {
    T logit[V], vlm[V];
    logits_of(j, there, logit, vlm);
    leave_out(there, logit);
    partial.add(logit);
    if (!kBoth) return;
    leave_out(there, vlm);
    vlm_partial.add(vlm);
  });
  const T total = join_block(partial).log2(), vlm_total = kBoth ? join_block(vlm_partial).log2() : T(0);

  partial = {};
  for_vectors([&](int32_t j, int there) {
    T score[V], vlm[V], w[V];
    logits_of(j, there, score, vlm);
    if (kBoth) load_numbers(op.exponent + j, there, w);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      score[v] -= total;
      if (kBoth) score[v] = (1 - w[v]) * score[v] + w[v] * (vlm[v] - vlm_total);
      if (v < there && j + v > 0) row[j + v] = score[v];
    }
    if (!kBoth || !op.renormalize) return;
    leave_out(there, score);
    partial.add(score);
  });
  const T shift = kBoth && op.renormalize ? join_block(partial).log2() : T(0);
  const T sure =
      op.objectness == nullptr ? T(1) : std::pow(op.objectness[region * op.objectness_stride], T(op.power));
  __syncthreads();  // of rows
#pragma unroll 4
  for (int32_t j = thread + 1; j < texts; j += kScoreThreads) out[j] = fast_exp2(row[j] - shift) * sure;
}

template <typename T>
void scores(const Scores<T>& op, int64_t regions, cudaStream_t stream) {
  constexpr size_t kMostKept = 16384;  // bytes
  const size_t row = op.texts * sizeof(T);
  const bool kept = row <= kMostKept;
  launch(op.vlm.data == nullptr ? scores_kernel<T, false> : scores_kernel<T, true>,
         static_cast<unsigned>(regions), kScoreThreads, kept ? row : 0, stream, op, kept);
}

}  // namespace cfmvit::kernels
