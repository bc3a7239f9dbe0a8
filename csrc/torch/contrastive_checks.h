// The rules of the contrastive ops, for every backend; cfmvit/ops/contrastive/op_checks.py says the same of
// tensors without data.
#pragma once

#include "torch/checks.h"

namespace cfmvit {

inline void check_contrastive(const char* op, const Tensor& image, const Tensor& text,
                              const Tensor& logit_scale, std::optional<int64_t> label_offset) {
  CFMVIT_CHECK(image.dim() == 2 && text.dim() == 2 && image.size(1) == text.size(1), op,
               ": image and text must be matrices of equal width, got ", image.dim(), "-d and ", text.dim(),
               "-d of width ", image.size(image.dim() - 1), " and ", text.size(text.dim() - 1));
  const ScalarType type = image.scalar_type();
  CFMVIT_CHECK(text.scalar_type() == type && (type == ScalarType::Float || type == ScalarType::Double ||
                                              type == ScalarType::Half || type == ScalarType::BFloat16),
               op, ": image and text must have one floating dtype, got ", type, " and ", text.scalar_type());
  CFMVIT_CHECK(logit_scale.dim() == 0, op, ": logit_scale must be 0-d, got ", logit_scale.dim(), "-d");
  CFMVIT_CHECK(image.size(0) > 0 && text.size(0) > 0, op, ": image and text must not be empty, got ",
               image.size(0), " and ", text.size(0), " rows");
  if (!label_offset) return;
  CFMVIT_CHECK(*label_offset >= 0 && *label_offset <= text.size(0) - image.size(0), op,
               ": text must have at least image rows + label_offset rows, got ", text.size(0), " rows for ",
               image.size(0), " + ", *label_offset);
}

inline void check_groups(const char* op, const Tensor& image, const Tensor& text,
                         const std::optional<Tensor>& image_groups,
                         const std::optional<Tensor>& text_groups) {
  CFMVIT_CHECK(image_groups.has_value() == text_groups.has_value(), op,
               ": image_groups and text_groups must both be given or neither");
  if (!image_groups) return;
  for (const auto& [groups, rows, name] :
       {std::tuple{&*image_groups, image.size(0), "image"}, {&*text_groups, text.size(0), "text"}}) {
    CFMVIT_CHECK(groups->dim() == 1 && groups->size(0) == rows, op, ": ", name,
                 "_groups must have one id per row, got ", groups->numel(), " for ", rows);
  }
}

// What a backward is given: shifts of every row and column, gradients of their sums and of every pair.
inline void check_vectors(const char* op, const Tensor& image, const Tensor& text,
                          std::optional<int64_t> label_offset, const Tensor& image_shift,
                          const Tensor& text_shift, const Tensor& grad_positive, const Tensor& grad_image_sum,
                          const Tensor& grad_text_sum) {
  const int64_t images = image.size(0), texts = text.size(0);
  check_shape(op, "image_shift", image_shift, {images});
  check_shape(op, "text_shift", text_shift, {texts});
  check_shape(op, "grad_positive", grad_positive, {label_offset ? images : 0});
  check_shape(op, "grad_image_sum", grad_image_sum, {images});
  check_shape(op, "grad_text_sum", grad_text_sum, {texts});
}

// Where the pair of image 0 stands among the texts; beyond all of them if there are no pairs.
inline int64_t first_pair(std::optional<int64_t> label_offset, const Tensor& text) {
  return label_offset.value_or(text.size(0));
}

}  // namespace cfmvit
