// Moving tokens on a GPU: checks, choice of dtype, workspaces, launches.
#include <tuple>

#include "cuda/launch.h"
#include "kernels/masking.cuh"
#include "kernels/masking_restore.cuh"
#include "torch/dispatch.h"
#include "torch/masking_checks.h"
#include "torch/registration.h"
#include "torch/tensor_views.h"

namespace cfmvit {
namespace {

using kernels::InverseEntries;
using kernels::Sources;

// Gathers by one index, or by two of which the second's rows go to a tensor of their own.
std::vector<Tensor> gather(const char* op, Tensor tokens,
                           const std::vector<std::pair<const char*, Tensor>>& by,
                           const std::optional<Tensor>& pos_embed, const std::optional<Tensor>& keep_pos) {
  check_tokens(op, "tokens", tokens);
  const int64_t batch = tokens.size(0), num_tokens = tokens.size(1), width = tokens.size(2);
  const Positions positions = checked_positions(op, tokens, pos_embed, keep_pos, num_tokens);
  tokens = rows_of(tokens);
  Sources sources{};
  std::vector<Tensor> outs;
  for (size_t i = 0; i < by.size(); ++i) {
    sources.index[i] = checked_index(op, by[i].first, by[i].second, batch, num_tokens);
    sources.entries[i] = by[i].second.size(1);
    outs.push_back(like(tokens, {batch, sources.entries[i], width}));
  }
  dispatch_floating(op, tokens.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    kernels::GatherTokens<S> gather{view<const S>(tokens),
                                    sources,
                                    positions.embed ? data<const S>(*positions.embed) : nullptr,
                                    positions.keep(),
                                    {},
                                    batch,
                                    num_tokens,
                                    width};
    for (size_t i = 0; i < outs.size(); ++i) gather.out[i] = view<S>(outs[i]);
    on_device(tokens, [&](cudaStream_t stream) { kernels::gather_tokens(gather, stream); });
  });
  return outs;
}

// Gradients of tokens and positions from those of gathered rows.
std::tuple<Tensor, Tensor> gather_backward(const char* op, const std::vector<GatheredGradient>& from,
                                           const std::optional<Tensor>& keep_pos, int64_t num_tokens,
                                           bool needs_tokens, bool needs_pos) {
  const std::vector<Index> indices = checked_gradients(op, from, num_tokens);
  std::vector<Tensor> grads;
  Sources sources{};
  for (size_t i = 0; i < from.size(); ++i) {
    sources.index[i] = indices[i];
    sources.entries[i] = from[i].index.size(1);
    grads.push_back(rows_of(from[i].grad));
  }
  const Tensor& first = grads[0];
  const int64_t batch = first.size(0), width = first.size(2);
  const Positions positions = checked_positions(op, first, std::nullopt, keep_pos, num_tokens);
  const Tensor none = like(first, {0});
  const Tensor grad_tokens = needs_tokens ? like(first, {batch, num_tokens, width}) : none;
  const Tensor grad_pos = needs_pos ? like(first, {num_tokens, width}) : none;
  const Tensor inverse = workspace<InverseEntries>(first, {batch, num_tokens});
  const int64_t samples = kernels::samples_per_partial(batch, num_tokens, width),
                partials = kernels::ceil_div(batch, samples);
  const Tensor partial = needs_pos ? like(first, {partials, num_tokens * width}, acc_type(first)) : none;
  dispatch_floating(op, first.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    kernels::ScatterTokens<S> scatter{{},
                                      sources,
                                      data<const InverseEntries>(inverse),
                                      positions.keep(),
                                      needs_tokens ? data<S>(grad_tokens) : nullptr,
                                      needs_pos ? data<acc_t<S>>(partial) : nullptr,
                                      batch,
                                      num_tokens,
                                      width,
                                      samples};
    for (size_t i = 0; i < grads.size(); ++i) scatter.grad[i] = view<const S>(grads[i]);
    on_device(first, [&](cudaStream_t stream) {
      kernels::invert(sources, data<InverseEntries>(inverse), batch, num_tokens, stream);
      kernels::scatter_tokens(scatter, stream);
      if (!needs_pos) return;
      kernels::column_sums(data<const acc_t<S>>(partial), num_tokens * width, data<S>(grad_pos), partials,
                           partials, num_tokens * width, stream);
    });
  });
  return {grad_tokens, grad_pos};
}

}  // namespace

Tensor gather_tokens_cuda(Tensor tokens, Tensor index, std::optional<Tensor> pos_embed,
                          std::optional<Tensor> keep_pos) {
  return gather("gather_tokens", tokens, {{"index", index}}, pos_embed, keep_pos)[0];
}

std::tuple<Tensor, Tensor> gather_tokens_backward_cuda(Tensor grad, Tensor index,
                                                       std::optional<Tensor> keep_pos, int64_t num_tokens,
                                                       bool needs_tokens, bool needs_pos) {
  return gather_backward("gather_tokens_backward", {{"grad", "index", grad, index}}, keep_pos, num_tokens,
                         needs_tokens, needs_pos);
}

std::tuple<Tensor, Tensor> split_tokens_cuda(Tensor tokens, Tensor keep, Tensor masked,
                                             std::optional<Tensor> pos_embed,
                                             std::optional<Tensor> keep_pos) {
  check_split("split_tokens", tokens, keep, masked);
  const std::vector<Tensor> outs = gather(
      "split_tokens", tokens, {{"masking.keep", keep}, {"masking.masked", masked}}, pos_embed, keep_pos);
  return {outs[0], outs[1]};
}

std::tuple<Tensor, Tensor> split_tokens_backward_cuda(Tensor grad_visible, Tensor grad_masked, Tensor keep,
                                                      Tensor masked, std::optional<Tensor> keep_pos,
                                                      bool needs_tokens, bool needs_pos) {
  constexpr const char* op = "split_tokens_backward";
  const int64_t num_tokens = split_tokens_count(op, keep, masked);
  return gather_backward(
      op, {{"grad_visible", "keep", grad_visible, keep}, {"grad_masked", "masked", grad_masked, masked}},
      keep_pos, num_tokens, needs_tokens, needs_pos);
}

Tensor restore_tokens_cuda(Tensor visible, Tensor mask_token, Tensor restore,
                           std::optional<Tensor> pos_embed) {
  constexpr const char* op = "restore_tokens";
  const Restored shape = check_restore(op, visible, mask_token, restore);
  const Positions positions = checked_positions(op, visible, pos_embed, std::nullopt, shape.count);
  visible = rows_of(visible);
  mask_token = dense(mask_token);
  const Tensor out = like(visible, {shape.batch, shape.count, shape.width});
  dispatch_floating(op, visible.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const kernels::Restore<S> from{view<const S>(visible),
                                   data<const S>(mask_token),
                                   shape.from,
                                   positions.embed ? data<const S>(*positions.embed) : nullptr,
                                   view<S>(out),
                                   shape.batch,
                                   shape.kept,
                                   shape.count,
                                   shape.width};
    on_device(visible, [&](cudaStream_t stream) { kernels::restore_tokens(from, stream); });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> restore_tokens_backward_cuda(Tensor grad, Tensor restore, int64_t kept,
                                                                bool needs_pos) {
  constexpr const char* op = "restore_tokens_backward";
  check_tokens(op, "grad", grad);
  const int64_t batch = grad.size(0), count = grad.size(1), width = grad.size(2), row = count * width;
  const Sources from = kernels::one_source(checked_restore(op, restore, batch, kept, count), count);
  grad = rows_of(grad);
  const Tensor none = like(grad, {0});
  const Tensor visible = like(grad, {batch, kept, width}), mask = like(grad, {width});
  const Tensor pos = needs_pos ? like(grad, {count, width}) : none;
  const Tensor inverse = workspace<InverseEntries>(grad, {batch, kept});
  const int64_t samples = kernels::samples_per_partial(batch, count, width),
                partials = kernels::ceil_div(batch, samples);
  const Tensor masks = like(grad, {partials, row}, acc_type(grad));
  const Tensor partial = needs_pos ? like(grad, {partials, row}, acc_type(grad)) : none;
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const kernels::RestoreBackward<S> backward{view<const S>(grad),
                                               from,
                                               data<const InverseEntries>(inverse),
                                               data<S>(visible),
                                               data<acc_t<S>>(masks),
                                               needs_pos ? data<acc_t<S>>(partial) : nullptr,
                                               batch,
                                               kept,
                                               count,
                                               width,
                                               samples};
    on_device(grad, [&](cudaStream_t stream) {
      kernels::invert(from, data<InverseEntries>(inverse), batch, kept, stream);
      kernels::restore_tokens_backward(backward, stream);
      kernels::column_sums(data<const acc_t<S>>(masks), width, data<S>(mask), partials * count,
                           partials * count, width, stream);
      if (!needs_pos) return;
      kernels::column_sums(data<const acc_t<S>>(partial), row, data<S>(pos), partials, partials, row, stream);
    });
  });
  return {visible, mask, pos};
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) {
  CFMVIT_IMPL(m, gather_tokens, &cfmvit::gather_tokens_cuda);
  CFMVIT_IMPL(m, gather_tokens_backward, &cfmvit::gather_tokens_backward_cuda);
  CFMVIT_IMPL(m, split_tokens, &cfmvit::split_tokens_cuda);
  CFMVIT_IMPL(m, split_tokens_backward, &cfmvit::split_tokens_backward_cuda);
  CFMVIT_IMPL(m, restore_tokens, &cfmvit::restore_tokens_cuda);
  CFMVIT_IMPL(m, restore_tokens_backward, &cfmvit::restore_tokens_backward_cuda);
}
