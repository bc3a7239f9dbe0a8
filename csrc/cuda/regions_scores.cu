// Detection scores from embeddings, on a GPU: chunk by chunk of regions, torch's matrix product of the
// embeddings of both towers at once and one kernel that reads it. Embeddings of 16 bits are multiplied as
// they are, exactly and summed in float32, by tensor cores; their norms are divided out of the products.
#include "cuda/launch.h"
#include "cuda/matmul.h"
#include "kernels/regions_scores.cuh"
#include "torch/dispatch.h"
#include "torch/regions_checks.h"
#include "torch/registration.h"
#include "torch/tensor_views.h"

namespace cfmvit {
namespace {

// Regions of a chunk: in whole waves of tiles of 128 x 256 on the 132 multiprocessors of an H100, what of
// their products stays in its cache; where that is less than a wave, what a bounded memory holds.
// CFMVIT_CHUNK_ROWS is defined by tests, which have few regions and want many chunks.
int64_t regions_of_chunk(int64_t regions, int64_t towers, [[maybe_unused]] int64_t texts,
                         [[maybe_unused]] int64_t row_bytes) {
#ifdef CFMVIT_CHUNK_ROWS
  const int64_t rows = CFMVIT_CHUNK_ROWS;
#else
  constexpr int64_t kCacheBytes = 33 * 1048576, kMostBytes = 256 * 1048576, kTileRows = 128, kWave = 132;
  const int64_t across = kernels::ceil_div(texts, 256);
  int64_t rows = 0;
  for (const int64_t bytes : {kCacheBytes, kMostBytes}) {
    const int64_t tiles = bytes / row_bytes / kTileRows * across;
    if (rows == 0) rows = tiles / kWave * kWave / across * kTileRows;
  }
  if (rows == 0) rows = kMostBytes / row_bytes;
#endif
  return std::clamp<int64_t>(rows / towers, 1, std::min<int64_t>(regions, INT32_MAX));
}

template <typename S>
kernels::Embeds<S> embeds_of(const Tensor& x) {
  return {data<const S>(x), x.stride(0), x.stride(1)};
}

}  // namespace

// region_embeds, vlm_embeds (R, C), text_embeds (1 + n, C), exponent (n,), objectness (R,) -> (R, n)
Tensor score_regions_cuda(Tensor region_embeds, Tensor text_embeds, std::optional<Tensor> vlm_embeds,
                          Tensor exponent, std::optional<Tensor> objectness, Tensor temperature,
                          Tensor vlm_temperature, double objectness_power, bool renormalize) {
  check_embeds(region_embeds, text_embeds, vlm_embeds, exponent, objectness, temperature, vlm_temperature);
  const int64_t regions = region_embeds.size(0), texts = text_embeds.size(0), width = text_embeds.size(1);
  const ScalarType sums = acc_type(region_embeds);
  CFMVIT_CHECK(texts <= INT32_MAX, "score_regions: text_embeds must have fewer than 2**31 rows, got ", texts);
  const Tensor out = like(region_embeds, {regions, texts - 1}, sums);
  if (out.numel() == 0) return out;
  const std::array<Tensor, 2> temperatures{torch::stable::to(temperature, sums),
                                           torch::stable::to(vlm_temperature, sums)};
  const auto run = [&]<typename S, bool kBoth>(S, std::bool_constant<kBoth>) {
    using T = acc_t<S>;
    constexpr int64_t kVec = 16 / sizeof(T), kTowers = kBoth ? 2 : 1;
    const int64_t row = (kernels::ceil_div(texts, kVec) + 1) * kVec;
    const int64_t chunk = regions_of_chunk(regions, kTowers, texts, row * sizeof(T));
    Tensor products = like(region_embeds, {kTowers * chunk, row}, sums),
           staged = like(region_embeds, {kTowers * chunk, width});
    const Tensor staged_texts = like(text_embeds, {texts, width}),
                 across = torch::stable::transpose(staged_texts, 0, 1);
    // Rows of texts begin at multiples of 16 bytes.
    const Tensor tables = like(region_embeds, {2 * row + 2 + (kTowers + 1) * regions}, sums);
    T* const table = data<T>(tables);
    const auto detector = embeds_of<S>(region_embeds),
               vlm = embeds_of<S>(kBoth ? *vlm_embeds : region_embeds), named = embeds_of<S>(text_embeds);
    kernels::Scores<S> op{{detector, vlm},
                          width,
                          std::min(kernels::vecs_of(detector, width), kernels::vecs_of(vlm, width)),
                          static_cast<int32_t>(texts),
                          regions,
                          chunk,
                          0,
                          data<S>(staged),
                          data<T>(products),
                          row,
                          table + 2 * row + 2,
                          table,
                          table + row,
                          table + 2 * row,
                          objectness ? table + 2 * row + 2 + kTowers * regions : nullptr,
                          renormalize,
                          data<T>(out)};
    const kernels::PrepareScores<S, kBoth> before{
        op,
        named,
        kernels::vecs_of(named, width),
        data<S>(staged_texts),
        data<const T>(exponent),
        exponent.stride(0),
        {data<const T>(temperatures[0]), data<const T>(temperatures[1])},
        objectness ? data<const T>(*objectness) : nullptr,
        objectness ? objectness->stride(0) : 0,
        objectness_power};
    on_device(out, [&](cudaStream_t stream) { kernels::prepare_scores(before, stream); });
    for (; op.first < regions; op.first += chunk) {
      const int64_t count = std::min(chunk, regions - op.first);
      Tensor rows = torch::stable::narrow(products, 0, 0, kTowers * count);
      rows = torch::stable::narrow(rows, 1, 0, texts);
      const Tensor from = torch::stable::narrow(staged, 0, 0, kTowers * count);
      if constexpr (std::is_same_v<S, T>) {
        multiply(rows, from, across);
      } else {
        multiply_wide(rows, from, across);
      }
      on_device(out, [&](cudaStream_t stream) { kernels::scores<kBoth>(op, count, stream); });
    }
  };
  dispatch_floating("score_regions", region_embeds.scalar_type(), [&](auto zero) {
    vlm_embeds ? run(zero, std::true_type()) : run(zero, std::false_type());
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) { CFMVIT_IMPL(m, score_regions, &cfmvit::score_regions_cuda); }
