// The reconstruction losses' checks, shared by the CPU and CUDA kernels.
#pragma once

#include "torch/masking_checks.h"
#include "torch/tensor_views.h"

namespace cfmvit {

// Which token each masked row is: through an index, or itself.
struct Tokens {
  std::optional<Index> index;
  int64_t masked;

  int64_t operator()(int64_t b, int64_t j) const { return index ? (*index)(b, j) : j; }
};

// pred, target (B, N, D), index (B, M) or none
inline Tokens check_cosine(const char* op, const Tensor& pred, const Tensor& target,
                           const std::optional<Tensor>& index) {
  CFMVIT_CHECK(pred.dim() == 3, op, ": pred must have shape (B, M, D), got ", shape_text(pred));
  check_shape(op, "target", target, {pred.size(0), pred.size(1), pred.size(2)});
  if (!index) return {std::nullopt, pred.size(1)};
  return {checked_distinct_index(op, "index", *index, pred.size(0), pred.size(1)), index->size(1)};
}

// The gradient of the losses of `shape`, contiguous.
inline Tensor checked_grad_output(const char* op, const Tensor& grad, const std::vector<int64_t>& shape,
                                  ScalarType type) {
  check_shape(op, "grad", grad, shape);
  CFMVIT_CHECK(grad.scalar_type() == type, op, ": grad must have the losses' dtype");
  return dense(grad);
}

// hidden (R, H), weight (D, H), bias (D,) or none, target (R, D)
inline void check_linear(const char* op, const Tensor& hidden, const Tensor& weight,
                         const std::optional<Tensor>& bias, const Tensor& target) {
  CFMVIT_CHECK(hidden.dim() == 2, op, ": hidden must have shape (R, H), got ", shape_text(hidden));
  CFMVIT_CHECK(weight.dim() == 2 && hidden.size(1) == weight.size(1), op, ": weight must have shape (D, ",
               hidden.size(1), "), got ", shape_text(weight));
  check_shape(op, "target", target, {hidden.size(0), weight.size(0)});
  check_type(op, "weight", weight, hidden);
  if (bias) {
    check_shape(op, "bias", *bias, {weight.size(0)});
    check_type(op, "bias", *bias, hidden);
  }
}

// Masked patches of images, and where their predictions lie.
struct MaskedPatches {
  Index index;
  PatchGrid grid;
  bool all;  // pred has a row for each patch, not only for the masked ones

  int64_t row(int64_t b, int64_t j) const { return all ? index(b, j) : j; }
};

// pred (B, N or M, P * P * C), images (B, C, H, W), index (B, M)
inline MaskedPatches check_pixels(const char* op, const Tensor& pred, const Tensor& images,
                                  const Tensor& index, int64_t size) {
  const PatchGrid grid = checked_grid(op, images, size);
  const Index at = checked_distinct_index(op, "index", index, images.size(0), grid.count());
  const bool all = pred.dim() == 3 && pred.size(1) == grid.count();
  check_shape(op, "pred", pred, {images.size(0), all ? grid.count() : index.size(1), grid.width()});
  CFMVIT_CHECK(images.scalar_type() == acc_type(pred), op,
               ": images must be float32, or float64 with a float64 pred");
  return {at, grid, all};
}

}  // namespace cfmvit
