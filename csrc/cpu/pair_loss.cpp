// The loss of the pairs, once their log-sum-exps are known, and its gradients, on the CPU. In float64: losses
// of well-trained pairs are small, and there are only B of them.
#include <array>
#include <cmath>

#include "checks.h"
#include "contrastive_strips.h"

namespace cfmvit {
namespace {

using namespace contrastive;

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

Tensor pair_loss_cpu(Tensor positive, Tensor image_lse, Tensor text_lse, double image_weight,
                     double text_weight, bool mean) {
  const Vectors vectors("pair_loss", positive, image_lse, text_lse);
  double total = vectors.sum([&](const auto* own, const auto* of_image, const auto* of_text, Range pairs) {
    double sum = 0;
    for (int64_t i = pairs.begin; i < pairs.end; ++i) {  // without weight not even a NaN counts
      if (image_weight != 0) sum += image_weight * Softplus(double(of_image[i]) - own[i]).value;
      if (text_weight != 0) sum += text_weight * Softplus(double(of_text[i]) - own[i]).value;
    }
    return sum;
  });
  if (mean) total /= positive.size(0);
  return scalar_like(positive, total, positive.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> pair_loss_backward_cpu(Tensor grad, Tensor positive, Tensor image_lse,
                                                          Tensor text_lse, double image_weight,
                                                          double text_weight, bool mean) {
  const Vectors vectors("pair_loss_backward", positive, image_lse, text_lse);
  CFMVIT_CHECK(grad.dim() == 0, "pair_loss_backward: grad must be 0-d, got ", grad.dim(), "-d");
  const int64_t count = positive.size(0);
  const double factor = value_of(grad) / (mean ? count : 1);
  const std::array<Tensor, 3> grads{like(positive, {count}), like(positive, {count}),
                                    like(positive, {count})};
  vectors.sum([&]<typename T>(const T* own, const T* of_image, const T* of_text, Range pairs) {
    for (int64_t i = pairs.begin; i < pairs.end; ++i) {
      const auto slope = [&](double weight, T lse) {
        return weight == 0 ? 0.0 : factor * weight * Softplus(double(lse) - own[i]).slope;
      };
      const double image = slope(image_weight, of_image[i]), text = slope(text_weight, of_text[i]);
      data<T>(grads[0])[i] = T(-(image + text));
      data<T>(grads[1])[i] = T(image);
      data<T>(grads[2])[i] = T(text);
    }
    return 0.0;
  });
  return {grads[0], grads[1], grads[2]};
}

}  // namespace
}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  m.impl("pair_loss", TORCH_BOX(&cfmvit::pair_loss_cpu));
  m.impl("pair_loss_backward", TORCH_BOX(&cfmvit::pair_loss_backward_cpu));
}
