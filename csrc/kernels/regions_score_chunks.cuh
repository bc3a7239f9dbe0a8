// Detection scores from embeddings, chunk by chunk of regions: one launch stages the texts and the first
// chunk; each chunk is then one product of staged embeddings, and one launch that turns it into scores
// (regions_scores.cuh) while it stages the next.
#pragma once

#include "kernels/for_each.cuh"
#include "kernels/log_sum_exp.cuh"
#include "kernels/regions_staging.cuh"

namespace cfmvit::kernels {

// R regions, their embeddings of one tower or of two; n labels, the background as text 0 before them.
template <typename S>
struct Scores {
  using T = acc_t<S>;

  Embeds<S> embeds[2];  // (R, C), the detector's and the vlm's
  int64_t channels;
  uint32_t vecs;                  // of a row of embeds, as stage_row takes them
  int32_t texts;                  // 1 + n
  int64_t regions, chunk, first;  // the first region of the chunk at hand
  S* staged;                      // (chunk, towers, C)
  T* products;                    // (chunk, towers, row) with the texts; minus infinity after the last
  int64_t row;                    // what texts fill of vectors of 16 bytes, and one vector more
  T* inverse;                     // (R, towers), of norms
  T *text_inverse, *exponent;     // (row,), of norms of texts; of the vlm's probability
  T* scale;                       // (2,), log2(e) / temperature, NaN where that isn't positive
  T* sure;                        // (R,) what objectness multiplies by, or null
  bool renormalize;
  T* out;  // (R, n)
};

template <bool kBoth, typename S>
__device__ __forceinline__ void stage_region(const Scores<S>& op, int64_t region, int64_t place) {
  constexpr int kTowers = kBoth ? 2 : 1, kLanes = 32 / kTowers;
  const uint32_t lane = threadIdx.x % 32, tower = lane / kLanes;
  const Embeds<S>& from = op.embeds[tower];
  const acc_t<S> inverse = stage_row<kLanes>(from.data + region * from.row, from.channel, op.channels,
                                             op.vecs, op.staged + (kTowers * place + tower) * op.channels);
  if (lane % kLanes == 0) op.inverse[kTowers * region + tower] = inverse;
}

// What comes before the first product: a warp each for the entries of a row of texts, for the regions of the
// first chunk, and for 32 regions' objectness.
template <typename S, bool kBoth>
struct PrepareScores {
  using T = acc_t<S>;

  Scores<S> op;
  Embeds<S> texts;
  uint32_t text_vecs;
  S* staged_texts;    // (1 + n, C)
  const T* exponent;  // (n,)
  int64_t exponent_stride;
  const T* temperature[2];  // () each
  const T* objectness;      // (R,) or null
  int64_t objectness_stride;
  double power;

  int64_t warps() const { return op.row + op.chunk + (objectness == nullptr ? 0 : ceil_div(op.regions, 32)); }

  __device__ void operator()(int64_t i) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (i < op.row) return text(i, lane);
    i -= op.row;
    if (i < op.chunk) return first_chunk(i, lane);
    const int64_t region = (i - op.chunk) * 32 + lane;
    if (region < op.regions) op.sure[region] = std::pow(objectness[region * objectness_stride], T(power));
  }

 private:
  __device__ void text(int64_t j, int lane) const {
    if (lane < 2 && j == 0) {
      const T value = *temperature[lane];
      op.scale[lane] = value > 0 ? T(kLog2E) / value : T(NAN);
    }
    // Such that what is after the last text stays minus infinity.
    T inverse = 1, weight = T(0.5);
    if (j < op.texts) {
      inverse = stage_row<32>(texts.data + j * texts.row, texts.channel, op.channels, text_vecs,
                              staged_texts + j * op.channels);
      weight = j == 0 ? T(0) : exponent[(j - 1) * exponent_stride];
    }
    if (lane != 0) return;
    op.text_inverse[j] = inverse;
    op.exponent[j] = weight;
  }

  __device__ void first_chunk(int64_t place, int lane) const {
    stage_region<kBoth>(op, place, place);
    for (int tower = 0; tower < (kBoth ? 2 : 1); ++tower) {
      T* const after = op.products + ((kBoth ? 2 : 1) * place + tower) * op.row + op.texts;
      if (lane < op.row - op.texts) after[lane] = -INFINITY;
    }
  }
};

template <typename S, bool kBoth>
void prepare_scores(const PrepareScores<S, kBoth>& work, cudaStream_t stream) {
  for_each_warp(work.warps(), work, stream);
}

}  // namespace cfmvit::kernels
