// The feature loss on a GPU: checks, choice of dtypes, workspace, launches.
#include "cuda/cosine_pairs.h"
#include "cuda/launch.h"
#include "torch/dispatch.h"
#include "torch/reconstruction_checks.h"
#include "torch/registration.h"

CFMVIT_COSINE_PAIRS()

namespace cfmvit {

// pred, target (B, N, D), index (B, M) or none -> losses (B, M)
Tensor masked_cosine_loss_cuda(Tensor pred, Tensor target, std::optional<Tensor> index, double eps) {
  constexpr const char* op = "masked_cosine_loss";
  const Tokens tokens = check_cosine(op, pred, target, index);
  const int64_t batch = pred.size(0), num_tokens = pred.size(1), width = pred.size(2);
  pred = rows_of(pred), target = rows_of(target);
  const Tensor losses = like(pred, {batch, tokens.masked}, acc_type(pred));
  dispatch_pair(op, pred, target, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    const kernels::CosineLosses<S, T> args{{view<const S>(pred), view<const T>(target), width, eps},
                                           tokens.index.value_or(Index{}),
                                           data<acc_t<S>>(losses),
                                           batch,
                                           num_tokens,
                                           tokens.masked};
    on_device(pred, [&](cudaStream_t stream) { kernels::cosine_losses(args, stream); });
  });
  return losses;
}

// grad (B, M) -> gradient of pred (B, N, D)
Tensor masked_cosine_loss_backward_cuda(Tensor grad, Tensor pred, Tensor target, std::optional<Tensor> index,
                                        double eps) {
  constexpr const char* op = "masked_cosine_loss_backward";
  const Tokens tokens = check_cosine(op, pred, target, index);
  const int64_t batch = pred.size(0), num_tokens = pred.size(1), width = pred.size(2);
  grad = checked_grad_output(op, grad, {batch, tokens.masked}, acc_type(pred));
  pred = rows_of(pred), target = rows_of(target);
  const Tensor out = like(pred, {batch, num_tokens, width});
  const Tensor memory = workspace<kernels::InverseEntries>(pred, {index ? batch : 0, num_tokens});
  const kernels::Sources sources = kernels::one_source(tokens.index.value_or(Index{}), tokens.masked);
  auto* inverse = index ? data<kernels::InverseEntries>(memory) : nullptr;
  dispatch_pair(op, pred, target, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    const kernels::CosineGradient<S, T> args{{view<const S>(pred), view<const T>(target), width, eps},
                                             sources,
                                             inverse,
                                             data<const acc_t<S>>(grad),
                                             data<S>(out),
                                             batch,
                                             num_tokens,
                                             tokens.masked};
    on_device(pred, [&](cudaStream_t stream) {
      if (inverse) kernels::invert(sources, inverse, batch, num_tokens, stream);
      kernels::cosine_gradient(args, stream);
    });
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) {
  CFMVIT_IMPL(m, masked_cosine_loss, &cfmvit::masked_cosine_loss_cuda);
  CFMVIT_IMPL(m, masked_cosine_loss_backward, &cfmvit::masked_cosine_loss_backward_cuda);
}
