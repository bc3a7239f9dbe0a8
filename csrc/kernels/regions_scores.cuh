// Detection scores from two rows of logits, a block a region: the softmaxes, their geometric mean, its
// normalisation over the labels and the background, and objectness, in three readings of the rows that stay
// in a core's L1 cache.
#pragma once

#include "kernels/portable.cuh"

namespace cfmvit::kernels {

constexpr int kScoreThreads = 128;

template <typename T>
struct Logits {  // (R, 1 + n) of these strides, the background first
  const T* data;
  int64_t row, label;
};

template <typename T>
struct Scores {
  Logits<T> detector, vlm;  // vlm.data may be null
  const T* exponent;        // (n,)
  int64_t exponent_stride;
  const T* objectness;  // (R,) or null
  int64_t objectness_stride;
  double power;
  bool renormalize;
  T* out;  // (R, n) contiguous
  int64_t labels;
};

// The largest of some numbers and the sum of exp(x - largest). Where one of them is NaN, so is the sum.
template <typename T>
struct SumOfExponentials {
  T largest, sum;

  __device__ void add(T x) { *this = join(*this, {x, 1}); }
  __device__ T log() const { return largest + std::log(sum); }

  __device__ static SumOfExponentials join(SumOfExponentials a, SumOfExponentials b) {
    const T largest = a.largest > b.largest ? a.largest : b.largest;
    // What is empty, or has only minus infinities, adds nothing; infinity minus itself would be NaN.
    const auto rescaled = [largest](SumOfExponentials x) {
      return x.sum == 0 || x.largest == largest ? x.sum : x.sum * std::exp(x.largest - largest);
    };
    return {largest, rescaled(a) + rescaled(b)};
  }
};

// Joins those of all threads, in an order that the block's size alone decides.
template <typename T>
__device__ SumOfExponentials<T> join_block(SumOfExponentials<T> mine) {
  constexpr int kWarps = kScoreThreads / 32;
  __shared__ T largest[kWarps], sum[kWarps];
  using Partial = SumOfExponentials<T>;
  for (int step = 16; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, mine.largest, step);
    mine = Partial::join(mine, {other, __shfl_xor_sync(kAllLanes, mine.sum, step)});
  }
  if (threadIdx.x % 32 == 0) {
    largest[threadIdx.x / 32] = mine.largest;
    sum[threadIdx.x / 32] = mine.sum;
  }
  __syncthreads();
  Partial all{largest[0], sum[0]};
  for (int w = 1; w < kWarps; ++w) all = Partial::join(all, {largest[w], sum[w]});
  __syncthreads();
  return all;
}

template <typename T>
__global__ void __launch_bounds__(kScoreThreads, 6) combine_scores_kernel(Scores<T> op) {
  const int64_t region = blockIdx.x;
  const T* const logit = op.detector.data + region * op.detector.row;
  const T* const vlm = op.vlm.data == nullptr ? nullptr : op.vlm.data + region * op.vlm.row;
  const auto log_sum = [&](const T* row, int64_t stride) {
    SumOfExponentials<T> partial{-INFINITY, 0};
    for (int64_t j = threadIdx.x; j <= op.labels; j += kScoreThreads) partial.add(row[j * stride]);
    return join_block(partial).log();
  };
  const T total = log_sum(logit, op.detector.label), vlm_total = vlm ? log_sum(vlm, op.vlm.label) : T(0);
  const auto log_score = [&](int64_t j) {  // of label j
    const T score = logit[(j + 1) * op.detector.label] - total;
    if (vlm == nullptr) return score;
    const T w = op.exponent[j * op.exponent_stride];
    return (1 - w) * score + w * (vlm[(j + 1) * op.vlm.label] - vlm_total);
  };
  T shift = 0;
  if (vlm != nullptr && op.renormalize) {
    SumOfExponentials<T> partial{-INFINITY, 0};
    if (threadIdx.x == 0) partial.add(logit[0] - total);
    for (int64_t j = threadIdx.x; j < op.labels; j += kScoreThreads) partial.add(log_score(j));
    shift = join_block(partial).log();
  }
  const T factor =
      op.objectness == nullptr ? T(1) : std::pow(op.objectness[region * op.objectness_stride], T(op.power));
  for (int64_t j = threadIdx.x; j < op.labels; j += kScoreThreads) {
    op.out[region * op.labels + j] = std::exp(log_score(j) - shift) * factor;
  }
}

template <typename T>
void combine_scores(const Scores<T>& op, int64_t regions, cudaStream_t stream) {
  launch(combine_scores_kernel<T>, static_cast<unsigned>(regions), kScoreThreads, 0, stream, op);
}

}  // namespace cfmvit::kernels
