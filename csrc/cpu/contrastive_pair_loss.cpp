// The loss of the pairs, once their log-sum-exps are known, and its gradients, on the CPU. In float64: losses
// of well-trained pairs are small, and there are only B of them.
#include <array>
#include <cmath>

#include "cpu/contrastive_ops.h"
#include "cpu/contrastive_row_blocks.h"
#include "torch/checks.h"
#include "torch/registration.h"

namespace cfmvit::contrastive {
namespace {

struct Softplus {
  double value, slope;

  explicit Softplus(double x) {  // a NaN stays
    const double e = std::exp(-std::abs(x));
    value = std::max(x, 0.0) + std::log1p(e);
    slope = (x > 0 ? 1.0 : e) / (1.0 + e);
  }
};

struct Vectors {
  std::array<Tensor, 3> held;  // positive, image_lse, text_lse (B,)

  Vectors(const char* op, const Tensor& positive, const Tensor& image_lse, const Tensor& text_lse)
      : held{dense(positive), dense(image_lse), dense(text_lse)} {
    const ScalarType type = positive.scalar_type();
    CFMVIT_CHECK(positive.numel() > 0, op, ": positive must not be empty, got shape ", shape_text(positive));
    CFMVIT_CHECK(type == ScalarType::Float || type == ScalarType::Double, op,
                 ": positive must be float32 or float64, got ", torch::headeronly::toString(type));
    for (const Tensor& x : held) {
      CFMVIT_CHECK(x.dim() == 1 && x.size(0) == positive.size(0) && x.scalar_type() == type, op,
                   ": image_lse and text_lse must have positive's shape and dtype, (", positive.numel(),
                   ",) ", torch::headeronly::toString(type), ", got ", shape_text(x), " ",
                   torch::headeronly::toString(x.scalar_type()));
    }
  }

  // Calls visit(T*, T*, T*, Range) for blocks of pairs, over threads; returns the sum of what it returns, in
  // an order that the number of pairs alone decides.
  template <typename Visit>
  double sum(const Visit& visit) const {
    constexpr int64_t kPairs = 1024;
    const int64_t pairs = held[0].size(0);
    std::vector<double> parts(ceil_div(pairs, kPairs));
    const auto run = [&]<typename T>(const T* positive, const T* image_lse, const T* text_lse) {
      torch::stable::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          parts[i] = visit(positive, image_lse, text_lse, block(i, kPairs, pairs));
        }
      });
    };
    const auto run_as = [&]<typename T>(T) { run(data<T>(held[0]), data<T>(held[1]), data<T>(held[2])); };
    held[0].scalar_type() == ScalarType::Double ? run_as(0.0) : run_as(0.0f);
    double total = 0;
    for (const double part : parts) total += part;
    return total;
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> pair_loss(Tensor positive, Tensor image_lse, Tensor text_lse,
                                                     double image_weight, double text_weight, bool mean) {
  const Vectors vectors("pair_loss", positive, image_lse, text_lse);
  const int64_t count = positive.size(0);
  const std::array<double, 2> weights{image_weight / (mean ? count : 1), text_weight / (mean ? count : 1)};
  const std::array<Tensor, 3> grads{like(positive, {count}), like(positive, {count}),
                                    like(positive, {count})};
  const double total =
      vectors.sum([&]<typename T>(const T* own, const T* of_image, const T* of_text, Range pairs) {
        const std::array<T*, 3> out{data<T>(grads[0]), data<T>(grads[1]), data<T>(grads[2])};
        double sum = 0;
        for (int64_t i = pairs.begin; i < pairs.end; ++i) {
          const auto term = [&](double weight, T lse) {  // without weight not even a NaN counts
            if (weight == 0) return 0.0;
            const Softplus loss(double(lse) - own[i]);
            sum += weight * loss.value;
            return weight * loss.slope;
          };
          const double image = term(weights[0], of_image[i]), text = term(weights[1], of_text[i]);
          out[0][i] = T(-(image + text));
          out[1][i] = T(image);
          out[2][i] = T(text);
        }
        return sum;
      });
  return {scalar_like(positive, total, positive.scalar_type()), grads[0], grads[1], grads[2]};
}

}  // namespace cfmvit::contrastive

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) { CFMVIT_IMPL(m, pair_loss, &cfmvit::contrastive::pair_loss); }
