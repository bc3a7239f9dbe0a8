// The masking ops' checks of tokens and positions, shared by the CPU and CUDA kernels.
#pragma once

#include "plain/patch_grid.h"
#include "torch/checks.h"

namespace cfmvit {

// Positional embedding of a gather, and which samples keep it (PED), contiguous.
struct Positions {
  std::optional<Tensor> embed;     // (N, D)
  std::optional<Tensor> keep_pos;  // (B,)

  const Tensor* table() const { return embed ? &*embed : nullptr; }
  const bool* keep() const { return keep_pos ? data<const bool>(*keep_pos) : nullptr; }
};

inline Positions checked_positions(const char* op, const Tensor& tokens, const std::optional<Tensor>& embed,
                                   const std::optional<Tensor>& keep_pos, int64_t num_tokens) {
  Positions out;
  if (embed) {
    check_shape(op, "pos_embed", *embed, {num_tokens, tokens.size(2)});
    check_type(op, "pos_embed", *embed, tokens);
    out.embed = dense(*embed);
  }
  if (keep_pos) {
    check_shape(op, "keep_pos", *keep_pos, {tokens.size(0)});
    CFMVIT_CHECK(keep_pos->scalar_type() == ScalarType::Bool, op, ": keep_pos must be bool, got ",
                 torch::headeronly::toString(keep_pos->scalar_type()));
    out.keep_pos = dense(*keep_pos);
  }
  return out;
}

inline void check_tokens(const char* op, const char* name, const Tensor& tokens) {
  CFMVIT_CHECK(tokens.dim() == 3, op, ": ", name, " must have shape (B, N, D), got ", shape_text(tokens));
}

inline void check_split(const char* op, const Tensor& tokens, const Tensor& keep, const Tensor& masked) {
  check_tokens(op, "tokens", tokens);
  CFMVIT_CHECK(keep.dim() == 2 && masked.dim() == 2 && keep.size(1) + masked.size(1) == tokens.size(1), op,
               ": masking must hold each of ", tokens.size(1), " tokens once, got ", shape_text(keep),
               " visible and ", shape_text(masked), " masked");
}

// How many tokens keep (B, K) and masked (B, M) hold.
inline int64_t split_tokens_count(const char* op, const Tensor& keep, const Tensor& masked) {
  CFMVIT_CHECK(keep.dim() == 2 && masked.dim() == 2, op,
               ": keep and masked must have shapes (B, K) and (B, M), ", "got ", shape_text(keep), " and ",
               shape_text(masked));
  return keep.size(1) + masked.size(1);
}

// A gradient of rows that were gathered, and the index that they were gathered by.
struct GatheredGradient {
  const char *name, *index_name;
  Tensor grad, index;  // (B, K, D), (B, K)
};

// Checks all of them before any is read: they have one batch, width and dtype.
inline std::vector<Index> checked_gradients(const char* op, const std::vector<GatheredGradient>& gradients,
                                            int64_t num_tokens) {
  CFMVIT_CHECK(num_tokens >= 0, op, ": num_tokens must not be negative, got ", num_tokens);
  const Tensor& first = gradients[0].grad;
  check_tokens(op, gradients[0].name, first);
  std::vector<Index> found;
  for (const auto& [name, index_name, grad, index] : gradients) {
    CFMVIT_CHECK(index.dim() == 2, op, ": ", index_name, " must have shape (B, K), got ", shape_text(index));
    check_shape(op, name, grad, {first.size(0), index.size(1), first.size(2)});
    check_type(op, name, grad, first);
    found.push_back(checked_index(op, index_name, index, first.size(0), num_tokens));
  }
  return found;
}

// restore (B, N): a permutation of N tokens, of which the first `kept` are visible tokens.
inline Index checked_restore(const char* op, const Tensor& restore, int64_t batch, int64_t kept,
                             int64_t count) {
  CFMVIT_CHECK(restore.dim() == 2 && restore.size(1) == count, op, ": restore must have shape (B, ", count,
               "), got ", shape_text(restore));
  CFMVIT_CHECK(kept >= 0 && kept <= count, op, ": visible must have at most ", count,
               " tokens, as restore has, got ", kept);
  return checked_distinct_index(op, "restore", restore, batch, count);
}

struct Restored {
  int64_t batch, kept, count, width;
  Index from;
};

// visible (B, K, D), mask_token (D,), restore (B, N)
inline Restored check_restore(const char* op, const Tensor& visible, const Tensor& mask_token,
                              const Tensor& restore) {
  check_tokens(op, "visible", visible);
  const int64_t batch = visible.size(0), kept = visible.size(1), width = visible.size(2);
  check_shape(op, "mask_token", mask_token, {width});
  check_type(op, "mask_token", mask_token, visible);
  const int64_t count = restore.dim() == 2 ? restore.size(1) : 0;
  return {batch, kept, count, width, checked_restore(op, restore, batch, kept, count)};
}

inline void check_noise(const char* op, const Tensor& noise, int64_t kept) {
  CFMVIT_CHECK(noise.dim() == 2, op, ": noise must have shape (B, N), got ", shape_text(noise));
  CFMVIT_CHECK(is_floating(noise), op, ": noise must be float32, float64, bfloat16 or float16, got ",
               torch::headeronly::toString(noise.scalar_type()));
  CFMVIT_CHECK(noise.size(1) <= INT32_MAX, op, ": noise must have fewer than 2**31 tokens, got ",
               noise.size(1));
  CFMVIT_CHECK(kept >= 0 && kept <= noise.size(1), op, ": kept must lie in 0..", noise.size(1), ", got ",
               kept);
}

inline PatchGrid checked_grid(const char* op, int64_t channels, int64_t height, int64_t width,
                              int64_t patch) {
  CFMVIT_CHECK(patch > 0 && height % patch == 0 && width % patch == 0, op,
               ": patch_size must divide the images' sides ", height, " x ", width, ", got ", patch);
  product(
      {channels, patch, patch});  // the width of a patch, which may be larger than an image without pixels
  return {channels, height / patch, width / patch, patch};
}
inline PatchGrid checked_grid(const char* op, const Tensor& images, int64_t patch) {
  CFMVIT_CHECK(images.dim() == 4, op, ": images must have shape (B, C, H, W), got ", shape_text(images));
  return checked_grid(op, images.size(1), images.size(2), images.size(3), patch);
}

// A statistic of each channel, in float64, contiguous.
inline std::optional<Tensor> checked_statistic(const char* op, const char* name,
                                               const std::optional<Tensor>& value, int64_t channels) {
  if (!value) return std::nullopt;
  check_shape(op, name, *value, {channels});
  CFMVIT_CHECK(value->scalar_type() == ScalarType::Double, op, ": ", name, " must be float64, got ",
               torch::headeronly::toString(value->scalar_type()));
  return dense(*value);
}

inline Statistics statistics_of(const std::optional<Tensor>& mean, const std::optional<Tensor>& std,
                                bool bytes) {
  return {mean ? data<const double>(*mean) : nullptr, std ? data<const double>(*std) : nullptr, bytes};
}

// The backward's grad (B, K, C * P * P), K all patches without an index.
inline void check_patch_gradient(const char* op, const Tensor& grad, const std::optional<Tensor>& index,
                                 const PatchGrid& grid) {
  CFMVIT_CHECK(grad.dim() == 3, op, ": grad must have shape (B, K, C * P * P), got ", shape_text(grad));
  check_shape(op, "grad", grad,
              {grad.size(0), index && index->dim() == 2 ? index->size(1) : grid.count(), grid.width()});
}

}  // namespace cfmvit
