// Detection scores from two rows of logits, on a GPU.
#include "cuda/launch.h"
#include "kernels/regions_scores.cuh"
#include "torch/regions_checks.h"
#include "torch/registration.h"

namespace cfmvit {

// logits, vlm_logits (R, 1 + n), exponent (n,), objectness (R,) -> (R, n)
Tensor combine_scores_cuda(Tensor logits, std::optional<Tensor> vlm_logits, Tensor exponent,
                           std::optional<Tensor> objectness, double objectness_power, bool renormalize) {
  check_scores(logits, vlm_logits, exponent, objectness);
  const int64_t rows = logits.size(0), labels = logits.size(1) - 1;
  CFMVIT_CHECK(rows <= INT32_MAX, "combine_scores: logits must have fewer than 2**31 rows, got ", rows);
  const Tensor out = like(logits, {rows, labels});
  if (out.numel() == 0) return out;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto view = [](const Tensor& x) {
      return kernels::Logits<T>{data<const T>(x), x.stride(0), x.stride(1)};
    };
    const kernels::Scores<T> op{view(logits),
                                vlm_logits ? view(*vlm_logits) : kernels::Logits<T>{},
                                data<const T>(exponent),
                                exponent.stride(0),
                                objectness ? data<const T>(*objectness) : nullptr,
                                objectness ? objectness->stride(0) : 0,
                                objectness_power,
                                renormalize,
                                data<T>(out),
                                labels};
    on_device(logits, [&](cudaStream_t stream) { kernels::combine_scores(op, rows, stream); });
  };
  logits.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) { CFMVIT_IMPL(m, combine_scores, &cfmvit::combine_scores_cuda); }
