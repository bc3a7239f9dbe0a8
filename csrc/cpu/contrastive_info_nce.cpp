// info_nce on the CPU: contrastive_lse and pair_loss in one call, since a small batch is outlasted by calls.
#include <array>

#include "cpu/contrastive_ops.h"
#include "cpu/contrastive_row_blocks.h"
#include "torch/contrastive_checks.h"
#include "torch/registration.h"

namespace cfmvit::contrastive {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> info_nce(Tensor image, Tensor text,
                                                                            Tensor logit_scale,
                                                                            int64_t label_offset,
                                                                            double image_weight,
                                                                            double text_weight, bool mean) {
  check_contrastive("info_nce", image, text, logit_scale, label_offset);
  const bool square = image.size(0) == text.size(0);
  CFMVIT_CHECK(square || text_weight == 0, "info_nce: text_weight must be 0 unless text has image's ",
               image.size(0), " rows, got ", text_weight, " and ", text.size(0), " rows");
  const auto [positive, image_shift, image_sum, text_shift, text_sum, image_max, text_max] =
      contrastive_lse(image, text, logit_scale, label_offset, std::nullopt, std::nullopt);
  // Without weight the texts' numbers are never looked at.
  auto [loss, grad_positive, grad_image_sum, grad_text_sum, grad_scale] =
      pair_loss(positive, image_shift, image_sum, square ? text_shift : image_shift,
                square ? text_sum : image_sum, logit_scale, image_weight, text_weight, mean);
  if (!square) grad_text_sum = torch::stable::new_zeros(text_sum, {text.size(0)});
  return {loss, image_shift, text_shift, grad_positive, grad_image_sum, grad_text_sum, grad_scale};
}

template <typename T>
Tensor scaled(const Tensor& x, double factor) {
  const int64_t size = x.size(0);
  const Tensor out = like(x, {size});
  std::transform(data<T>(x), data<T>(x) + size, data<T>(out), [&](T value) { return T(factor * value); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> info_nce_backward(Tensor grad, Tensor image, Tensor text,
                                                     Tensor logit_scale, int64_t label_offset,
                                                     Tensor image_shift, Tensor text_shift,
                                                     Tensor grad_positive, Tensor grad_image_sum,
                                                     Tensor grad_text_sum, Tensor grad_scale,
                                                     bool needs_image, bool needs_text) {
  const char* const op = "info_nce_backward";
  check_contrastive(op, image, text, logit_scale, label_offset);
  check_shape(op, "grad", grad, {});
  check_shape(op, "grad_scale", grad_scale, {});
  check_vectors(op, image, text, label_offset, image_shift, text_shift, grad_positive, grad_image_sum,
                grad_text_sum);
  std::array<Tensor, 3> grads{grad_positive, grad_image_sum, grad_text_sum};
  const double factor = value_of(grad);
  for (Tensor& x : grads) {
    const Tensor vector = prepared(x, compute_type(image));
    x = vector.scalar_type() == ScalarType::Double ? scaled<double>(vector, factor)
                                                   : scaled<float>(vector, factor);
  }
  const auto [grad_image, grad_text, by_sums] =
      contrastive_lse_backward(image, text, logit_scale, label_offset, image_shift, text_shift, grads[0],
                               grads[1], grads[2], needs_image, needs_text, false);
  const double by_pairs = factor * value_of(grad_scale);
  return {
      grad_image, grad_text,
      cast(scalar_like(image, value_of(by_sums) + by_pairs, ScalarType::Double), logit_scale.scalar_type())};
}

}  // namespace
}  // namespace cfmvit::contrastive

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  CFMVIT_IMPL(m, info_nce, &cfmvit::contrastive::info_nce);
  CFMVIT_IMPL(m, info_nce_backward, &cfmvit::contrastive::info_nce_backward);
}
