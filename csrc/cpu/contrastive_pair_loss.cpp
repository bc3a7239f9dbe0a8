// The loss of the pairs, once their log-sum-exps are known, and its gradients, on the CPU. In float64: losses
// of well-trained pairs are small, and there are only B of them.
#include <array>
#include <cmath>

#include "cpu/contrastive_ops.h"
#include "cpu/contrastive_row_blocks.h"
#include "torch/contrastive_checks.h"
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

// The five vectors of the pairs, in one dtype.
struct Vectors {
  std::array<Tensor, 5> held;  // positive, image_shift, image_sum, text_shift, text_sum (B,)

  explicit Vectors(const std::array<Tensor, 5>& given) : held(given) {
    static constexpr const char* kNames[] = {"positive", "image_shift", "image_sum", "text_shift",
                                             "text_sum"};
    const ScalarType type = held[0].scalar_type();
    CFMVIT_CHECK(held[0].numel() > 0, "pair_loss: positive must not be empty, got shape ",
                 shape_text(held[0]));
    CFMVIT_CHECK(held[0].dim() == 1, "pair_loss: positive must have shape (B,), got ", shape_text(held[0]));
    CFMVIT_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                 "pair_loss: positive must be float32 or float64, got ", torch::headeronly::toString(type));
    for (size_t k = 0; k < held.size(); ++k) {
      check_shape("pair_loss", kNames[k], held[k], {held[0].size(0)});
      check_type("pair_loss", kNames[k], held[k], held[0]);
      held[k] = dense(held[k]);
    }
  }
};

// What pairs add to the loss and to its gradient by logit_scale.
struct Sums {
  double loss = 0, grad_scale = 0;
};

template <typename T>
Sums pair_losses(const Vectors& vectors, const std::array<Tensor, 3>& grads, double scale,
                 std::array<double, 2> weights) {
  constexpr int64_t kPairs = 1024;  // of a block: their sums are added in an order that B alone decides
  const T* const positive = data<T>(vectors.held[0]);
  const int64_t pairs = vectors.held[0].size(0);
  std::vector<Sums> partial(ceil_div(pairs, kPairs));
  // What pair i adds in one direction; returns the slope of its loss. Without weight not even a NaN counts.
  const auto add = [&](Sums& sums, double weight, T own, T shift, T sum, T& grad) {
    grad = 0;
    if (weight == 0 || (sum == 0 && std::isfinite(own))) return 0.0;  // no negatives: a probability of one
    const bool undefined = sum == 0 || scale * own == HUGE_VAL;  // infinity less infinity, as of a softmax
    const double lead = undefined ? std::nan("") : double(shift) - own;
    const Softplus loss(scale * lead + std::log(double(sum)));
    const double slope = weight * loss.slope;
    sums.loss += weight * loss.value;
    sums.grad_scale -= slope * own;
    grad = T(slope / sum);
    return slope;
  };
  const T *const image_shift = data<T>(vectors.held[1]), *const image_sum = data<T>(vectors.held[2]);
  const T *const text_shift = data<T>(vectors.held[3]), *const text_sum = data<T>(vectors.held[4]);
  T *const grad_positive = data<T>(grads[0]), *const grad_image_sum = data<T>(grads[1]),
           *const grad_text_sum = data<T>(grads[2]);
  torch::stable::parallel_for(0, partial.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Range range = block(b, kPairs, pairs);
      for (int64_t i = range.begin; i < range.end; ++i) {
        const double image =
            add(partial[b], weights[0], positive[i], image_shift[i], image_sum[i], grad_image_sum[i]);
        const double text =
            add(partial[b], weights[1], positive[i], text_shift[i], text_sum[i], grad_text_sum[i]);
        grad_positive[i] = T(-(image + text) * scale);
      }
    }
  });
  Sums total;
  for (const Sums& sums : partial) {
    total.loss += sums.loss;
    total.grad_scale += sums.grad_scale;
  }
  return total;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pair_loss(Tensor positive, Tensor image_shift,
                                                             Tensor image_sum, Tensor text_shift,
                                                             Tensor text_sum, Tensor logit_scale,
                                                             double image_weight, double text_weight,
                                                             bool mean) {
  const Vectors vectors({positive, image_shift, image_sum, text_shift, text_sum});
  check_shape("pair_loss", "logit_scale", logit_scale, {});
  const int64_t count = positive.size(0);
  const std::array<double, 2> weights{image_weight / (mean ? count : 1), text_weight / (mean ? count : 1)};
  const std::array<Tensor, 3> grads{like(positive, {count}), like(positive, {count}),
                                    like(positive, {count})};
  const bool wide = positive.scalar_type() == ScalarType::Double;
  const Sums sums =
      (wide ? pair_losses<double> : pair_losses<float>)(vectors, grads, value_of(logit_scale), weights);
  return {scalar_like(positive, sums.loss, positive.scalar_type()), grads[0], grads[1], grads[2],
          cast(scalar_like(positive, sums.grad_scale, ScalarType::Double), logit_scale.scalar_type())};
}

}  // namespace cfmvit::contrastive

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) { CFMVIT_IMPL(m, pair_loss, &cfmvit::contrastive::pair_loss); }
