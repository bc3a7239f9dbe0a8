// Moving tokens on a GPU: checks, choice of dtype, launch.
#include <tuple>

#include "checks.h"
#include "dispatch.h"
#include "kernels/masking.cuh"
#include "launch.h"
#include "masking_checks.h"

namespace cfmvit {

Tensor gather_tokens_cuda(Tensor tokens, Tensor index, std::optional<Tensor> pos_embed,
                          std::optional<Tensor> keep_pos) {
  constexpr const char* op = "gather_tokens";
  check_tokens(op, "tokens", tokens);
  const int64_t batch = tokens.size(0), places = tokens.size(1), width = tokens.size(2);
  const Index at = checked_index(op, "index", index, batch, places);
  const Positions positions = checked_positions(op, tokens, pos_embed, keep_pos, places);
  tokens = rows_of(tokens);
  const Tensor out = like(tokens, {batch, index.size(1), width});
  dispatch_floating(op, tokens.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    on_device(tokens, [&](cudaStream_t stream) {
      kernels::gather_tokens<S>({data<const S>(tokens), tokens.stride(0), tokens.stride(1)}, at,
                                positions.embed ? data<const S>(*positions.embed) : nullptr, positions.keep(),
                                data<S>(out), batch, places, index.size(1), width, stream);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> gather_tokens_backward_cuda(Tensor grad, Tensor index,
                                                       std::optional<Tensor> keep_pos, int64_t num_tokens,
                                                       bool needs_tokens, bool needs_pos) {
  constexpr const char* op = "gather_tokens_backward";
  check_tokens(op, "grad", grad);
  const int64_t batch = grad.size(0), entries = grad.size(1), width = grad.size(2), row = num_tokens * width;
  const Index at = checked_index(op, "index", index, batch, num_tokens);
  CFMVIT_CHECK(index.size(1) == entries, op, ": index must have ", entries, " columns, got ", index.size(1));
  const Positions positions = checked_positions(op, grad, std::nullopt, keep_pos, num_tokens);
  grad = rows_of(grad);
  const Tensor none = like(grad, {0});
  const Tensor grad_tokens = needs_tokens || needs_pos ? like(grad, {batch, num_tokens, width}) : none;
  const Tensor grad_pos = needs_pos ? like(grad, {num_tokens, width}) : none;
  if (grad_tokens.numel() == 0 && !needs_pos) return {grad_tokens, grad_pos};
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const ScalarType sums = std::is_same_v<Sum<S>, double> ? ScalarType::Double : ScalarType::Float;
    const Tensor part = needs_pos ? like(grad, {kernels::position_parts(batch), row}, sums) : none;
    on_device(grad, [&](cudaStream_t stream) {
      kernels::gather_tokens_backward<S>({data<const S>(grad), grad.stride(0), grad.stride(1)}, at,
                                         data<S>(grad_tokens), batch, num_tokens, entries, width, stream);
      if (needs_pos) {
        kernels::sum_positions<S>(data<const S>(grad_tokens), positions.keep(), data<Sum<S>>(part),
                                  data<S>(grad_pos), batch, row, stream);
      }
    });
  });
  return {needs_tokens ? grad_tokens : none, grad_pos};
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) {
  m.impl("gather_tokens", TORCH_BOX(&cfmvit::gather_tokens_cuda));
  m.impl("gather_tokens_backward", TORCH_BOX(&cfmvit::gather_tokens_backward_cuda));
}
