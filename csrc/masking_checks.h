// The masking ops' checks of tokens and positions, shared by the CPU and CUDA kernels.
#pragma once

#include "checks.h"

namespace cfmvit {

// Positional embedding and PED coins of a gather, contiguous.
struct Positions {
  std::optional<Tensor> embed;  // (N, D)
  std::optional<Tensor> coins;  // (B,)

  const Tensor* table() const { return embed ? &*embed : nullptr; }
  const bool* keep() const { return coins ? data<const bool>(*coins) : nullptr; }
};

inline Positions checked_positions(const char* op, const Tensor& tokens, const std::optional<Tensor>& embed,
                                   const std::optional<Tensor>& coins, int64_t places) {
  Positions out;
  if (embed) {
    check_shape(op, "pos_embed", *embed, {places, tokens.size(2)});
    check_type(op, "pos_embed", *embed, tokens);
    out.embed = torch::stable::contiguous(*embed);
  }
  if (coins) {
    check_shape(op, "keep_pos", *coins, {tokens.size(0)});
    CFMVIT_CHECK(coins->scalar_type() == ScalarType::Bool, op, ": keep_pos must be bool, got ",
                 torch::headeronly::toString(coins->scalar_type()));
    out.coins = torch::stable::contiguous(*coins);
  }
  return out;
}

inline void check_tokens(const char* op, const char* name, const Tensor& tokens) {
  CFMVIT_CHECK(tokens.dim() == 3, op, ": ", name, " must have shape (B, N, D), got ", shape_text(tokens));
}

}  // namespace cfmvit
