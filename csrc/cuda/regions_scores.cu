// Detection scores from embeddings, on a GPU: torch's matrix products of them, chunk by chunk, and one kernel
// that reads the products. Embeddings of 16 bits are multiplied as they are, exactly and summed in float32,
// by tensor cores; their norms are divided out of the products.
#include "cuda/launch.h"
#include "cuda/matmul.h"
#include "kernels/regions_norms.cuh"
#include "kernels/regions_scores.cuh"
#include "kernels/vectors.cuh"
#include "torch/dispatch.h"
#include "torch/regions_checks.h"
#include "torch/registration.h"
#include "torch/tensor_views.h"

namespace cfmvit {
namespace {

constexpr int64_t kProductBytes = 256 * 1048576;  // of a chunk's products

// The right or the left side of a product, with the inverse norms of its rows.
struct Side {
  Tensor rows, inverse;  // (R, C), (R,)
};

template <typename S>
Side side_of(const Tensor& x) {
  using T = acc_t<S>;
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor inverse = like(x, {rows}, acc_type(x));
  if constexpr (std::is_same_v<S, T>) {
    const Tensor unit = like(x, {rows, width});
    on_device(x, [&](cudaStream_t stream) {
      kernels::for_each_warp(
          rows, kernels::Normalize<S>{data<const S>(x), x.stride(0), x.stride(1), data<S>(unit), width},
          stream);
    });
    return {unit, torch::stable::fill_(inverse, 1.0)};
  } else {
    on_device(x, [&](cudaStream_t stream) {
      kernels::row_norms(data<const S>(x), rows, x.stride(0), x.stride(1), data<T>(inverse), width, stream);
    });
    return {x, inverse};
  }
}

template <typename S>
void multiply_sides(const Tensor& out, const Side& a, const Side& b) {
  const Tensor across = torch::stable::transpose(b.rows, 0, 1);
  if constexpr (std::is_same_v<S, acc_t<S>>) {
    multiply(out, a.rows, across);
  } else {
    multiply_wide(out, a.rows, across);
  }
}

}  // namespace

// region_embeds, vlm_embeds (R, C), text_embeds (1 + n, C), exponent (n,), objectness (R,) -> (R, n)
Tensor score_regions_cuda(Tensor region_embeds, Tensor text_embeds, std::optional<Tensor> vlm_embeds,
                          Tensor exponent, std::optional<Tensor> objectness, Tensor temperature,
                          Tensor vlm_temperature, double objectness_power, bool renormalize) {
  check_embeds(region_embeds, text_embeds, vlm_embeds, exponent, objectness, temperature, vlm_temperature);
  const int64_t regions = region_embeds.size(0), texts = text_embeds.size(0);
  const ScalarType sums = acc_type(region_embeds);
  CFMVIT_CHECK(texts <= INT32_MAX, "score_regions: text_embeds must have fewer than 2**31 rows, got ", texts);
  const Tensor out = like(region_embeds, {regions, texts - 1}, sums);
  if (out.numel() == 0) return out;
  Tensor exponents = torch::stable::new_zeros(exponent, {texts});
  Tensor of_labels = torch::stable::narrow(exponents, 0, 1, texts - 1);
  torch::stable::copy_(of_labels, exponent);
  const std::array<Tensor, 2> temperatures{torch::stable::to(temperature, sums),
                                           torch::stable::to(vlm_temperature, sums)};
  std::vector<Tensor> towers{region_embeds};
  if (vlm_embeds) towers.push_back(*vlm_embeds);
  dispatch_floating("score_regions", region_embeds.scalar_type(), [&]<typename S>(S) {
    using T = acc_t<S>;
    constexpr int64_t kVec = 16 / sizeof(T);  // rows begin where a product writes fastest
    const int64_t row = kernels::ceil_div(texts, kVec) * kVec, bytes = row * sizeof(T) * towers.size();
    const int64_t chunk =
        std::clamp<int64_t>(kProductBytes / bytes, 1, std::min<int64_t>(regions, INT32_MAX));
    const Side text = side_of<S>(text_embeds);
    std::vector<Tensor> products;
    for (size_t i = 0; i < towers.size(); ++i) products.push_back(like(region_embeds, {chunk, row}, sums));
    for (int64_t first = 0; first < regions; first += chunk) {
      const int64_t count = std::min(chunk, regions - first);
      std::vector<Side> sides;
      kernels::Products<T> read[2]{};
      for (size_t i = 0; i < towers.size(); ++i) {
        sides.push_back(side_of<S>(torch::stable::narrow(towers[i], 0, first, count)));
        Tensor rows = torch::stable::narrow(products[i], 0, 0, count);
        multiply_sides<S>(torch::stable::narrow(rows, 1, 0, texts), sides[i], text);
        read[i] = {data<const T>(products[i]), row, data<const T>(sides[i].inverse),
                   data<const T>(temperatures[i])};
      }
      const kernels::Scores<T> op{
          read[0],
          read[1],
          data<const T>(text.inverse),
          data<const T>(exponents),
          objectness ? data<const T>(*objectness) + first * objectness->stride(0) : nullptr,
          objectness ? objectness->stride(0) : 0,
          objectness_power,
          renormalize,
          data<T>(out) + first * (texts - 1),
          static_cast<int32_t>(texts)};
      on_device(out, [&](cudaStream_t stream) { kernels::scores(op, count, stream); });
    }
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) { CFMVIT_IMPL(m, score_regions, &cfmvit::score_regions_cuda); }
