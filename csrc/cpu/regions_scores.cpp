// Detection scores on the CPU: what the eager chain does in about fifteen passes over (R, 1 + n).
#include <cmath>
#include <memory>

#include "cpu/capability.h"
#include "cpu/interrupt.h"
#include "cpu/matmul_blocks.h"
#include "plain/half.h"
#include "torch/regions_checks.h"
#include "torch/registration.h"

namespace cfmvit {
namespace {

using blocks::matrix_of;

namespace baseline {
#define CFMVIT_BYTES 16
#include "cpu/regions_scores.inc"
#undef CFMVIT_BYTES
}  // namespace baseline
#ifdef CFMVIT_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define CFMVIT_BYTES 32
#include "cpu/regions_scores.inc"
#undef CFMVIT_BYTES
}  // namespace avx2
#pragma GCC pop_options
#else
namespace avx2 = baseline;
#endif

// What turns rows of logits into rows of scores.
template <typename T>
struct Votes {
  const T *exponent, *objectness;  // (n,), (R,) or null
  T objectness_power;
  bool renormalize;
  int64_t labels;
  T* out;  // (R, n)

  // Row i from its logits, (1 + n,) each; vlm may be null. scratch (1 + n,)
  void score(int64_t i, const T* logits, const T* vlm, T* scratch) const {
    const auto run = kHasAvx2 ? avx2::score_row<T> : baseline::score_row<T>;
    const T factor = objectness ? std::pow(objectness[i], objectness_power) : T(1);
    run(logits, vlm, exponent, labels, factor, renormalize, scratch, out + i * labels);
  }
};

template <typename Run>
void dispatch_summed(const Tensor& x, const Run& run) {
  x.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

// Rows of x (R, C) scaled to norm 1 / temperature, to `out`. As torch.nn.functional.normalize, but norms
// are summed in float64: those of float32 can't overflow there.
template <typename T>
void scale_rows(Matrix<const T> x, double temperature, Matrix<T> out) {
  constexpr int64_t kSums = 8;
  for (int64_t r = 0; r < x.rows; ++r) {
    const T* from = x.data + r * x.row;
    double sums[kSums] = {};
    int64_t k = 0;
    for (; k + kSums <= x.cols; k += kSums) {
      for (int64_t l = 0; l < kSums; ++l) sums[l] += double(from[k + l]) * from[k + l];
    }
    for (; k < x.cols; ++k) sums[0] += double(from[k]) * from[k];
    double sum = 0;
    for (const double partial : sums) sum += partial;
    const double factor = 1 / (std::max(std::sqrt(sum), 1e-12) * temperature);
    T* to = out.data + r * out.row;
    for (int64_t c = 0; c < x.cols; ++c) to[c] = T(from[c] * factor);
  }
}

// region_embeds, vlm_embeds (R, C), text_embeds (1 + n, C), exponent (n,), objectness (R,) -> (R, n)
Tensor score_regions_cpu(Tensor region_embeds, Tensor text_embeds, std::optional<Tensor> vlm_embeds,
                         Tensor exponent, std::optional<Tensor> objectness, Tensor temperature,
                         Tensor vlm_temperature, double objectness_power, bool renormalize) {
  check_embeds(region_embeds, text_embeds, vlm_embeds, exponent, objectness, temperature, vlm_temperature);
  const int64_t regions = region_embeds.size(0), width = region_embeds.size(1), texts = text_embeds.size(0);
  const ScalarType sums = exponent.scalar_type();
  const auto wide = [sums](const Tensor& x) {
    return dense(x.scalar_type() == sums ? x : torch::stable::to(x, sums));
  };
  const Tensor out = like(exponent, {regions, texts - 1}), unit_text = like(exponent, {texts, width});
  const Tensor detector = wide(region_embeds), text = wide(text_embeds), exponents = dense(exponent);
  const Tensor vlm = vlm_embeds ? wide(*vlm_embeds) : detector;
  const Tensor sure = objectness ? dense(*objectness) : detector;
  dispatch_summed(exponent, [&]<typename T>(T) {
    const Votes<T> votes{data<const T>(exponents),
                         objectness ? data<const T>(sure) : nullptr,
                         T(objectness_power),
                         renormalize,
                         texts - 1,
                         data<T>(out)};
    parallel_ranges(texts, 2 * width, [&](int64_t begin, int64_t end) {
      scale_rows<T>(matrix_of<const T>(text).window({begin, end}), 1.0,
                    matrix_of<T>(unit_text).window({begin, end}));
    });
    const std::array<double, 2> temperatures{value_of(temperature), value_of(vlm_temperature)};
    constexpr int64_t kBlock = 128;  // regions
    Interrupt interrupt;
    blocks::for_blocks<T>(ceil_div(regions, kBlock), 2 * kBlock * texts * width, [&](int64_t i) {
      if (interrupt.requested()) return;
      const Range rows = block(i, kBlock, regions);
      const auto units = std::make_unique_for_overwrite<T[]>(rows.size() * width);
      const auto logits = std::make_unique_for_overwrite<T[]>(2 * rows.size() * texts);
      std::vector<T> scratch(texts);
      const Matrix<T> unit{units.get(), rows.size(), width, width};
      for (int tower = 0; tower < (vlm_embeds ? 2 : 1); ++tower) {
        scale_rows<T>(matrix_of<const T>(tower ? vlm : detector).window(rows), temperatures[tower], unit);
        blocks::multiply(Matrix<T>{logits.get() + tower * rows.size() * texts, rows.size(), texts, texts},
                         unit, matrix_of<T>(unit_text).t());
      }
      for (int64_t r = 0; r < rows.size(); ++r) {
        votes.score(rows.begin + r, &logits[r * texts],
                    vlm_embeds ? &logits[(rows.size() + r) * texts] : nullptr, scratch.data());
      }
    });
    interrupt.check("score_regions");
  });
  return out;
}

}  // namespace
}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) { CFMVIT_IMPL(m, score_regions, &cfmvit::score_regions_cpu); }
