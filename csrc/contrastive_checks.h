// The rules of the contrastive ops, for every backend; cfmvit/ops/_contrastive_ops.py says the same of
// tensors without data.
#pragma once

#include "checks.h"

namespace cfmvit {

inline void check_contrastive(const char* op, const Tensor& image, const Tensor& text,
                              const Tensor& logit_scale, int64_t label_offset) {
  CFMVIT_CHECK(image.dim() == 2 && text.dim() == 2 && image.size(1) == text.size(1), op,
               ": image and text must be matrices of equal width, got ", image.dim(), "-d and ", text.dim(),
               "-d of width ", image.size(image.dim() - 1), " and ", text.size(text.dim() - 1));
  const ScalarType type = image.scalar_type();
  CFMVIT_CHECK(text.scalar_type() == type && (type == ScalarType::Float || type == ScalarType::Double ||
                                              type == ScalarType::Half || type == ScalarType::BFloat16),
               op, ": image and text must have one floating dtype, got ", type, " and ", text.scalar_type());
  CFMVIT_CHECK(logit_scale.dim() == 0, op, ": logit_scale must be 0-d, got ", logit_scale.dim(), "-d");
  CFMVIT_CHECK(image.size(0) > 0 && label_offset >= 0 && text.size(0) >= image.size(0) + label_offset, op,
               ": text must have at least image rows + label_offset rows, got ", text.size(0), " rows for ",
               image.size(0), " + ", label_offset);
}

inline void check_groups(const char* op, const Tensor& text, const std::optional<Tensor>& group_ids) {
  if (!group_ids) return;
  CFMVIT_CHECK(group_ids->dim() == 1 && group_ids->size(0) == text.size(0), op,
               ": group_ids must have one id per text, got ", group_ids->numel(), " for ", text.size(0));
}

}  // namespace cfmvit
