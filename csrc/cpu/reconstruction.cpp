// The feature loss on the CPU: one loss per masked token, by a thread that owns its row. The masked index is
// followed where it is needed, so gathered rows are never written.
#include <cstring>

#include "cpu/rows.h"
#include "plain/cosine.h"
#include "torch/dispatch.h"
#include "torch/reconstruction_checks.h"
#include "torch/registration.h"

namespace cfmvit {

// pred, target (B, N, D), index (B, M) or none -> losses (B, M)
Tensor masked_cosine_loss_cpu(Tensor pred, Tensor target, std::optional<Tensor> index, double eps) {
  constexpr const char* op = "masked_cosine_loss";
  const Tokens tokens = check_cosine(op, pred, target, index);
  const int64_t batch = pred.size(0), count = pred.size(1), width = pred.size(2);
  const std::vector<int64_t> entries = entries_by_token(batch, count, tokens.masked, tokens);
  pred = rows_of(pred), target = rows_of(target);
  const Tensor losses = like(pred, {batch, tokens.masked}, acc_type(pred));
  dispatch_pair(op, pred, target, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    const Rows<const S> preds = view<const S>(pred);
    const Rows<const T> targets = view<const T>(target);
    acc_t<S>* out = data<acc_t<S>>(losses);
    parallel(batch * count, 4 * width, [&](int64_t task) {
      const int64_t b = task / count, n = task % count, j = entries[task];
      if (j < 0) return;
      acc_t<S> sums[3];
      CFMVIT_ROWS(products<S, T>)(preds.at(b, n), targets.at(b, n), width, sums);
      out[b * tokens.masked + j] = Cosine<acc_t<S>>(sums, eps).loss;
    });
  });
  return losses;
}

// grad (B, M) -> gradient of pred (B, N, D)
Tensor masked_cosine_loss_backward_cpu(Tensor grad, Tensor pred, Tensor target, std::optional<Tensor> index,
                                       double eps) {
  constexpr const char* op = "masked_cosine_loss_backward";
  const Tokens tokens = check_cosine(op, pred, target, index);
  const int64_t batch = pred.size(0), count = pred.size(1), width = pred.size(2);
  grad = checked_grad_output(op, grad, {batch, tokens.masked}, acc_type(pred));
  pred = rows_of(pred), target = rows_of(target);
  const Tensor out = like(pred, {batch, count, width});
  const std::vector<int64_t> entries = entries_by_token(batch, count, tokens.masked, tokens);
  dispatch_pair(op, pred, target, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    const Rows<const S> preds = view<const S>(pred);
    const Rows<const T> targets = view<const T>(target);
    const acc_t<S>* grad_output = data<const acc_t<S>>(grad);
    S* first = data<S>(out);
    parallel(batch * count, 6 * width, [&](int64_t task) {
      const int64_t b = task / count, n = task % count;
      S* to = first + task * width;
      if (entries[task] < 0) {
        std::memset(to, 0, width * sizeof(S));
        return;
      }
      acc_t<S> sums[3];
      CFMVIT_ROWS(products<S, T>)(preds.at(b, n), targets.at(b, n), width, sums);
      const Cosine<acc_t<S>> cosine(sums, eps);
      const acc_t<S> g = grad_output[b * tokens.masked + entries[task]];
      CFMVIT_ROWS(combine<S, T>)
      (to, g * cosine.to_pred, preds.at(b, n), g * cosine.to_target, targets.at(b, n), width);
    });
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  CFMVIT_IMPL(m, masked_cosine_loss, &cfmvit::masked_cosine_loss_cpu);
  CFMVIT_IMPL(m, masked_cosine_loss_backward, &cfmvit::masked_cosine_loss_backward_cpu);
}
