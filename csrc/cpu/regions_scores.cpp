// Detection scores from two rows of logits, on the CPU: what the eager chain does in about fifteen passes
// over (R, 1 + n).
#include <cmath>

#include "../regions_checks.h"
#include "capability.h"
#include "half.h"

namespace cfmvit {
namespace {

constexpr int kLanes =
    16;  // partial sums of a row: a fixed number keeps the bits the same for any vector width

namespace baseline {
#define CFMVIT_BYTES 16
#include "regions_scores.inc"
#undef CFMVIT_BYTES
}  // namespace baseline
#ifdef CFMVIT_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define CFMVIT_BYTES 32
#include "regions_scores.inc"
#undef CFMVIT_BYTES
}  // namespace avx2
#pragma GCC pop_options
#else
namespace avx2 = baseline;
#endif

// logits, vlm_logits (R, 1 + n), exponent (n,), objectness (R,) -> (R, n)
Tensor combine_scores_cpu(Tensor logits, std::optional<Tensor> vlm_logits, Tensor exponent,
                          std::optional<Tensor> objectness, double objectness_power, bool renormalize) {
  check_scores(logits, vlm_logits, exponent, objectness);
  const int64_t rows = logits.size(0), labels = logits.size(1) - 1;
  const Tensor out = like(logits, {rows, labels}), detector = dense(logits), exponents = dense(exponent);
  const Tensor vlm = vlm_logits ? dense(*vlm_logits) : detector;
  const Tensor sure = objectness ? dense(*objectness) : detector;
  const auto run = [&]<typename T>(T) {
    const auto score_row = kHasAvx2 ? avx2::score_row<T> : baseline::score_row<T>;
    const int64_t grain = std::max<int64_t>(1, 16384 / (labels + 1));
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(labels + 1);
      for (int64_t i = begin; i < end; ++i) {
        const T factor = objectness ? std::pow(data<const T>(sure)[i], T(objectness_power)) : T(1);
        score_row(data<const T>(detector) + i * (labels + 1),
                  vlm_logits ? data<const T>(vlm) + i * (labels + 1) : nullptr, data<const T>(exponents),
                  labels, factor, renormalize, scratch.data(), data<T>(out) + i * labels);
      }
    });
  };
  logits.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return out;
}

}  // namespace
}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  m.impl("combine_scores", TORCH_BOX(&cfmvit::combine_scores_cpu));
}
