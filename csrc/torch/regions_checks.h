// The rules of the region ops, for every backend; the Python functions say the same earlier, as ValueError or
// TypeError.
#pragma once

#include "plain/regions_limits.h"
#include "torch/checks.h"

namespace cfmvit {

// least: the fewest bins along each side of a box.
inline void check_sampling(const char* op, int64_t pooled_height, int64_t pooled_width,
                           int64_t sampling_ratio, int64_t least) {
  const int64_t most = regions::kMaxSamples, side = std::max(pooled_height, pooled_width);
  CFMVIT_CHECK(std::min(pooled_height, pooled_width) >= least, op, ": output_size must be ",
               least > 0 ? "one or two positive integers" : "one or two integers, none negative", ", got ",
               pooled_height, " x ", pooled_width);
  CFMVIT_CHECK(side <= most, op, ": output_size must be at most ", most, ", got ", pooled_height, " x ",
               pooled_width);
  CFMVIT_CHECK(sampling_ratio <= most / std::max<int64_t>(side, 1), op, ": sampling_ratio must give at most ",
               most, " samples along a side of a box, got ", sampling_ratio, " in each of ", pooled_height,
               " x ", pooled_width, " bins");
}

inline void check_rois(const char* op, const Tensor& rois, const Tensor& features) {
  CFMVIT_CHECK(rois.dim() == 2 && rois.size(1) == 5, op, ": boxes must have shape (R, 5), got ", rois.dim(),
               " dimensions and ", rois.numel(), " entries");
  CFMVIT_CHECK(rois.scalar_type() == ScalarType::Float || rois.scalar_type() == ScalarType::Double, op,
               ": boxes must be float32 or float64, got ", rois.scalar_type());
  CFMVIT_CHECK(rois.device() == features.device(), op, ": boxes must be on the features' device");
}

inline void check_dim(const char* op, const char* name, const Tensor& x, int64_t dim) {
  CFMVIT_CHECK(x.dim() == dim, op, ": ", name, " must have ", dim, " dimensions, got ", x.dim());
}

// Feature maps, (B, C, H, W).
inline void check_map(const char* op, const char* name, const Tensor& map) {
  check_dim(op, name, map, 4);
  CFMVIT_CHECK(map.size(2) > 0 && map.size(3) > 0, op, ": ", name, " must have a non-empty map, got ",
               map.size(2), " x ", map.size(3));
}

// Results (R, C, P, Q) or their gradients.
inline void check_bins(const char* op, const Tensor& grad, const Tensor& rois, int64_t channels) {
  CFMVIT_CHECK(grad.dim() == 4 && grad.size(0) == rois.size(0) && grad.size(1) == channels, op,
               ": grad must have shape (", rois.size(0), ", ", channels, ", P, Q), got ", grad.dim(),
               " dimensions and ", grad.numel(), " entries");
}

inline void check_levels(const char* op, size_t maps, size_t scales, const Tensor& levels,
                         const Tensor& rois) {
  CFMVIT_CHECK(maps > 0 && maps == scales, op, ": scales must have one number for each of ", maps,
               " levels, got ", scales);
  CFMVIT_CHECK(
      levels.dim() == 1 && levels.size(0) == rois.size(0) && levels.scalar_type() == ScalarType::Long, op,
      ": levels must be int64 of shape (", rois.size(0), ",)");
  CFMVIT_CHECK(levels.device() == rois.device(), op, ": levels must be on the features' device");
}

inline void check_levels_of(const char* op, const Tensor& rois, int64_t count, double canonical_scale) {
  check_rois(op, rois, rois);
  CFMVIT_CHECK(count >= 1, op, ": count must be at least 1, got ", count);
  CFMVIT_CHECK(canonical_scale > 0, op, ": canonical_scale must be positive, got ", canonical_scale);
}

inline void check_grid(const char* op, int64_t num_tokens, int64_t height, int64_t width, int64_t prefix) {
  CFMVIT_CHECK(height >= 1 && width >= 1, op, ": grid_size must be two positive integers, got ", height,
               " x ", width);
  CFMVIT_CHECK(prefix >= 0, op, ": num_prefix_tokens must not be negative, got ", prefix);
  const int64_t wanted = product({prefix}) + product({height, width});
  CFMVIT_CHECK(num_tokens == wanted, op, ": tokens must have num_prefix_tokens + h * w = ", wanted,
               " tokens, got ", num_tokens);
}

// tokens (B, N, C)
inline void check_pool(const char* op, const Tensor& tokens, const Tensor& rois, int64_t grid_height,
                       int64_t grid_width, int64_t pooled_height, int64_t pooled_width,
                       int64_t sampling_ratio, int64_t prefix) {
  check_dim(op, "tokens", tokens, 3);
  check_rois(op, rois, tokens);
  check_grid(op, tokens.size(1), grid_height, grid_width, prefix);
  check_sampling(op, pooled_height, pooled_width, sampling_ratio, 1);
}

// grad (R, C), tokens (B, N, C) or none
inline void check_pool_backward(const char* op, const Tensor& grad, const Tensor& rois,
                                const std::optional<Tensor>& tokens, int64_t batch, int64_t num_tokens,
                                int64_t grid_height, int64_t grid_width, int64_t pooled_height,
                                int64_t pooled_width, int64_t sampling_ratio, int64_t prefix) {
  check_rois(op, rois, grad);
  CFMVIT_CHECK(grad.dim() == 2 && grad.size(0) == rois.size(0), op, ": grad must have shape (", rois.size(0),
               ", C), got ", grad.dim(), " dimensions and ", grad.numel(), " entries");
  check_grid(op, num_tokens, grid_height, grid_width, prefix);
  check_sampling(op, pooled_height, pooled_width, sampling_ratio, 1);
  if (tokens) {
    check_shape(op, "tokens", *tokens, {batch, num_tokens, grad.size(1)});
    check_type(op, "tokens", *tokens, grad);
  }
}

// regions, vlm (R, C), text (1 + n, C), exponent (n,), objectness (R,), the last two of the type of sums
inline void check_embeds(const Tensor& regions, const Tensor& text, const std::optional<Tensor>& vlm,
                         const Tensor& exponent, const std::optional<Tensor>& objectness,
                         const Tensor& temperature, const Tensor& vlm_temperature) {
  const char* op = "score_regions";
  CFMVIT_CHECK(regions.dim() == 2, op, ": region_embeds must have shape (R, C), got ", shape_text(regions));
  CFMVIT_CHECK(text.dim() == 2 && text.size(0) >= 1 && text.size(1) == regions.size(1), op,
               ": text_embeds must have shape (1 + n, ", regions.size(1), "), got ", shape_text(text));
  CFMVIT_CHECK(is_floating(regions), op,
               ": region_embeds must be float32, float64, bfloat16 or float16, got ",
               torch::headeronly::toString(regions.scalar_type()));
  check_type(op, "text_embeds", text, regions);
  if (vlm) {
    check_shape(op, "vlm_embeds", *vlm, {regions.size(0), regions.size(1)});
    check_type(op, "vlm_embeds", *vlm, regions);
  }
  const ScalarType sums =
      regions.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto check_vote = [&](const char* name, const Tensor& x, int64_t count) {
    check_shape(op, name, x, {count});
    CFMVIT_CHECK(x.scalar_type() == sums, op, ": ", name, " must have dtype ",
                 torch::headeronly::toString(sums), ", got ", torch::headeronly::toString(x.scalar_type()));
  };
  check_vote("exponent", exponent, text.size(0) - 1);
  if (objectness) check_vote("objectness", *objectness, regions.size(0));
  CFMVIT_CHECK(temperature.dim() == 0 && vlm_temperature.dim() == 0, op, ": temperatures must be 0-d");
}

}  // namespace cfmvit
