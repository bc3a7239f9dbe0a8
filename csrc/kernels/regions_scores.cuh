// A chunk's products turned into scores, the geometric mean of the towers' softmaxes, normalised over labels
// and background, times objectness; the next chunk is staged meanwhile.
#pragma once

#include "kernels/log_sum_exp.cuh"
#include "kernels/regions_score_chunks.cuh"

namespace cfmvit::kernels {

// Products times `factor` are a tower's logits, in units of log 2; `total` is the logarithm of the sum of
// their exponentials.
template <typename T>
struct Softmax {
  T factor, total;

  __device__ T log_probability(T product) const { return std::fma(product, factor, -total); }
};

// Minus infinity times zero would be NaN.
template <typename T>
constexpr T kLeastFactor = std::numeric_limits<T>::min();

template <typename S>
__device__ acc_t<S> factor_of(const Scores<S>& op, int64_t row, int tower) {
  using T = acc_t<S>;
  const T factor = op.inverse[row] * op.scale[tower];
  return factor < kLeastFactor<T> ? kLeastFactor<T> : factor;
}

template <bool kBoth, typename T>
__device__ T log_score(const Softmax<T>& detector, T product, const Softmax<T>& vlm, T other, T weight) {
  const T p = detector.log_probability(product);
  return kBoth ? std::fma(weight, vlm.log_probability(other), (1 - weight) * p) : p;
}

// A warp a region, which holds kVecs vectors of logits a lane: each product is read once. kSure: how many
// vectors of a lane all vocabularies fill.
template <typename S, bool kBoth, int kVecs, int kSure>
__global__ void __launch_bounds__(32, 12) warp_scores_kernel(Scores<S> op) {
  using T = acc_t<S>;
  constexpr int V = 16 / sizeof(T), N = kVecs * V, kTowers = kBoth ? 2 : 1;
  __shared__ Vec<T, V> row[32 * kVecs];
  const uint32_t lane = threadIdx.x, past = (static_cast<uint32_t>(op.texts) + V - 1) / V;
  const int64_t place = blockIdx.x, region = op.first + place;
  const T* const products = op.products + kTowers * place * op.row;
  // The lane's i-th vector of a row; beyond the texts that after the last.
  const auto read = [&](const T* from, int i) {
    const uint32_t p = lane + 32u * i;
    return reinterpret_cast<const Vec<T, V>*>(from)[i < kSure ? p : min(p, past)];
  };

  T logit[N], vlm[kBoth ? N : 1];
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const Vec<T, V> some = read(products, i);
#pragma unroll
    for (int v = 0; v < V; ++v) logit[i * V + v] = some[v];
    if constexpr (kBoth) {
      const Vec<T, V> others = read(products + op.row, i);
#pragma unroll
      for (int v = 0; v < V; ++v) vlm[i * V + v] = others[v];
    }
  }
  if (region + op.chunk < op.regions) stage_region<kBoth>(op, region + op.chunk, place);
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const Vec<T, V> inverse = read(op.text_inverse, i);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      logit[i * V + v] *= inverse[v];
      if constexpr (kBoth) vlm[i * V + v] *= inverse[v];
    }
  }

  Softmax<T> p{factor_of(op, kTowers * region, 0), 0}, z{};
  SumOfExponentials<T> sum;
  sum.add(logit, p.factor);
  sum = join_warp(sum);
  if constexpr (kBoth) {
    z.factor = factor_of(op, kTowers * region + 1, 1);
    SumOfExponentials<T> vlm_sum;
    vlm_sum.add(vlm, z.factor);
    vlm_sum = join_warp(vlm_sum);
    const T total = (lane < 16 ? sum : vlm_sum).log2();  // one logarithm for both
    p.total = __shfl_sync(kAllLanes, total, 0);
    z.total = __shfl_sync(kAllLanes, total, 16);
  } else {
    p.total = sum.log2();
  }

  SumOfExponentials<T> all;
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    Vec<T, V> weight{};
    if constexpr (kBoth) weight = read(op.exponent, i);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      T& x = logit[i * V + v];
      x = log_score<kBoth>(p, x, z, kBoth ? vlm[kBoth ? i * V + v : 0] : T(0), weight[v]);
      all.largest = std::fmax(all.largest, x);
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    logit[i] = fast_exp2(logit[i] - all.largest);
    all.sum += logit[i];
  }
  T factor = op.sure == nullptr ? T(1) : op.sure[region];
  if (kBoth && op.renormalize) {
    const SumOfExponentials<T> joined = join_warp(all);
    factor *= __fdividef(fast_exp2(all.largest - joined.largest), joined.sum);
  } else {
    factor *= fast_exp2(all.largest);
  }
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    Vec<T, V> score;
#pragma unroll
    for (int v = 0; v < V; ++v) score.set(v, logit[i * V + v] * factor);
    row[lane + 32 * i] = score;
  }
  __syncwarp();
  // Rows of results begin anywhere: each lane writes single numbers, its neighbours the next. They leave the
  // cache before products do. Without `opaque` each store that has a condition would compute its address
  // anew.
  const T* const scores = reinterpret_cast<const T*>(row) + lane;
  T* const out = opaque(op.out + region * (op.texts - 1) + lane - 1);
  const int32_t left = op.texts - static_cast<int32_t>(lane);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i == 0 && lane == 0) continue;  // the background
    if (i < kSure * V || 32 * i < left) __stcs(out + 32 * i, scores[32 * i]);
  }
}

constexpr int kScoreThreads = 64;  // more would repeat the sums that threads exchange

// A block a region, for any number of texts. kept: whether shared memory holds a row of the results; else it
// is kept in the results themselves.
template <typename S, bool kBoth>
__global__ void __launch_bounds__(kScoreThreads, sizeof(S) < 8 ? 8 : 4)
    block_scores_kernel(Scores<S> op, bool kept) {
  using T = acc_t<S>;
  constexpr int V = 16 / sizeof(T), kTowers = kBoth ? 2 : 1, kWarps = kScoreThreads / 32;
  const uint32_t texts = op.texts, thread = threadIdx.x;
  const int64_t place = blockIdx.x, region = op.first + place;
  if (thread < 32 && region + op.chunk < op.regions) stage_region<kBoth>(op, region + op.chunk, place);
  const T* const products = op.products + kTowers * place * op.row;
  T* const out = op.out + region * (op.texts - 1) - 1;  // of text j
  T* const row = kept ? dynamic_shared<T>() : out;

  // Calls run(j, logits, logits of the vlm) for this thread's vectors of texts from j on.
  const auto for_vectors = [&](const auto& run) {
    for (uint32_t j = thread * V; j < texts; j += kScoreThreads * V) {
      const Vec<T, V> inverse = vec_at<V>(op.text_inverse + j, 0), some = vec_at<V>(products + j, 0);
      Vec<T, V> others{};
      if (kBoth) others = vec_at<V>(products + op.row + j, 0);
      T logit[V], vlm[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        logit[v] = some[v] * inverse[v];
        vlm[v] = others[v] * inverse[v];
      }
      run(j, logit, vlm);
    }
  };

  SumOfExponentials<T> partial, vlm_partial;
  Softmax<T> p{factor_of(op, kTowers * region, 0), 0}, z{};
  if (kBoth) z.factor = factor_of(op, kTowers * region + 1, 1);
  for_vectors([&](uint32_t, T(&logit)[V], T(&vlm)[V]) {
    partial.add(logit, p.factor);
    if (kBoth) vlm_partial.add(vlm, z.factor);
  });
  p.total = join_block<kWarps>(partial).log2();
  if (kBoth) z.total = join_block<kWarps>(vlm_partial).log2();

  partial = {};
  for_vectors([&](uint32_t j, T(&score)[V], T(&vlm)[V]) {
    Vec<T, V> weight{};
    if (kBoth) weight = vec_at<V>(op.exponent + j, 0);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      score[v] = log_score<kBoth>(p, score[v], z, vlm[v], weight[v]);
      if (j + v < texts && j + v > 0) row[j + v] = score[v];
    }
    if (kBoth && op.renormalize) partial.add(score, T(1));
  });
  const T shift = kBoth && op.renormalize ? join_block<kWarps>(partial).log2() : T(0);
  const T sure = op.sure == nullptr ? T(1) : op.sure[region];
  __syncthreads();  // of rows
#pragma unroll 4
  for (uint32_t j = thread + 1; j < texts; j += kScoreThreads) out[j] = fast_exp2(row[j] - shift) * sure;
}

// Of the chunk's `count` regions.
template <bool kBoth, typename S>
void scores(const Scores<S>& op, int64_t count, cudaStream_t stream) {
  using T = acc_t<S>;
  const auto blocks = static_cast<unsigned>(count);
  if constexpr (std::is_same_v<T, float>) {
    constexpr int kFew = 3, kSome = 6, kMany = 10, kTexts = 128;  // vectors a lane; texts of a warp's
    const auto run = [&](auto kernel) { launch(kernel, blocks, 32, 0, stream, op); };
    if (op.texts <= kFew * kTexts) return run(warp_scores_kernel<S, kBoth, kFew, 0>);
    if (op.texts <= kSome * kTexts) return run(warp_scores_kernel<S, kBoth, kSome, kFew>);
    if (op.texts <= kMany * kTexts) return run(warp_scores_kernel<S, kBoth, kMany, kSome>);
  }
  constexpr size_t kMostKept = 16384;  // bytes
  const size_t row = op.texts * sizeof(T);
  const bool kept = row <= kMostKept;
  launch(block_scores_kernel<S, kBoth>, blocks, kScoreThreads, kept ? row : 0, stream, op, kept);
}

}  // namespace cfmvit::kernels
