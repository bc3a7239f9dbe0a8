// The feature loss with the decoder's last projection fused in, on the CPU. Rows go in chunks that fit a
// last-level cache, and within a chunk in blocks, each projected by one thread: the prediction is never held,
// and the bits do not depend on the number of threads.
#include <tuple>

#include "cpu/matmul_blocks.h"
#include "cpu/rows.h"
#include "plain/cosine.h"
#include "torch/dispatch.h"
#include "torch/reconstruction_checks.h"
#include "torch/registration.h"

namespace cfmvit {
namespace {

using blocks::matrix_of;

constexpr int64_t kBlock = 64;  // rows of a block, and columns of the weight's gradient that one thread owns
constexpr int64_t kChunkBytes = 4 * 1048576;  // of projected rows

// Operands of the projection in type S, contiguous.
template <typename S>
struct Linear {
  Tensor hidden, weight;
  std::optional<Tensor> bias;
  Matrix<const S> rows, across;  // hidden (R, H) and the weight's transpose (H, D)
  const S* added;
  int64_t chunk;  // rows
  Tensor buffer;
  Matrix<S> pred;  // (chunk, D)

  Linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b)
      : hidden(dense(x)), weight(dense(w)) {
    if (b) bias = dense(*b);
    added = bias ? data<const S>(*bias) : nullptr;
    rows = matrix_of<const S>(hidden);
    across = matrix_of<const S>(weight).t();
    const int64_t row = std::max<int64_t>(1, across.cols * static_cast<int64_t>(sizeof(S)));
    chunk = std::clamp(kChunkBytes / row / kBlock * kBlock, kBlock,
                       std::max(kBlock, ceil_div(rows.rows, kBlock) * kBlock));
    buffer = like(hidden, {chunk, across.cols});
    pred = matrix_of<S>(buffer);
  }

  // Calls visit(chunk) for each range of rows.
  template <typename Visit>
  void each_chunk(const Visit& visit) const {
    for (int64_t i = 0; i < ceil_div(rows.rows, chunk); ++i) visit(block(i, chunk, rows.rows));
  }

  // For each block of rows of a chunk, in parallel: projects it, then calls visit(r, row of pred) for each of
  // its rows r of hidden, then done(rows of hidden, rows of pred).
  template <typename Visit, typename Done>
  void each_row(Range of, const Visit& visit, const Done& done) const {
    blocks::for_blocks<S>(ceil_div(of.size(), kBlock),
                          std::min(kBlock, of.size()) * across.rows * across.cols, [&](int64_t i) {
                            const Range local = block(i, kBlock, of.size()),
                                        global{of.begin + local.begin, of.begin + local.end};
                            const Matrix<S> out = pred.window(local);
                            blocks::multiply(out, rows.window(global), across);
                            for (int64_t r = 0; r < local.size(); ++r) {
                              S* row = out.data + r * out.row;
                              if (added) CFMVIT_ROWS(add<S>)(row, row, added, out.cols);
                              visit(global.begin + r, row);
                            }
                            done(global, out);
                          });
  }
};

}  // namespace

// hidden (R, H), weight (D, H), bias (D,) or none, target (R, D) -> losses (R,)
Tensor linear_masked_cosine_loss_cpu(Tensor hidden, Tensor weight, std::optional<Tensor> bias, Tensor target,
                                     double eps) {
  constexpr const char* op = "linear_masked_cosine_loss";
  check_linear(op, hidden, weight, bias, target);
  target = rows_of(target);
  const Tensor losses = like(hidden, {hidden.size(0)}, acc_type(hidden));
  dispatch_pair(op, hidden, target, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    const Linear<S> linear(hidden, weight, bias);
    const T* targets = data<const T>(target);
    const int64_t stride = target.stride(0), width = weight.size(0);
    acc_t<S>* out = data<acc_t<S>>(losses);
    const auto loss = [&](int64_t r, S* row) {
      acc_t<S> sums[3];
      CFMVIT_ROWS(products<S, T>)(row, targets + r * stride, width, sums);
      out[r] = Cosine<acc_t<S>>(sums, eps).loss;
    };
    linear.each_chunk([&](Range chunk) { linear.each_row(chunk, loss, [](Range, const Matrix<S>&) {}); });
  });
  return losses;
}

namespace {

// Of hidden (R, H), weight (D, H) and bias (D,), the last two in float32 or better; of no rows where not
// needed.
struct Gradients {
  Tensor hidden, weight, bias;

  Gradients(const Tensor& x, const Tensor& w, bool needs_hidden, bool needs_weight)
      : hidden(like(x, {needs_hidden ? x.size(0) : 0, x.size(1)})),
        weight(torch::stable::new_zeros(w, {needs_weight ? w.size(0) : 0, w.size(1)}, acc_type(x))),
        bias(torch::stable::new_zeros(w, {needs_weight ? w.size(0) : 0}, acc_type(x))) {}
};

// Projects each chunk of rows and differentiates it. grad_output (R,), null where all are one; losses (R,),
// null where not wanted.
template <typename S, typename T>
void differentiate(const Linear<S>& linear, const Tensor& target, double eps, const acc_t<S>* grad_output,
                   acc_t<S>* losses, const Gradients& grads) {
  constexpr bool kWide = std::is_same_v<S, acc_t<S>>;
  const T* targets = data<const T>(target);
  const int64_t stride = target.stride(0), width = linear.across.cols, inner = linear.across.rows;
  const bool by_hidden = grads.hidden.size(0) > 0, by_weight = grads.weight.size(0) > 0;
  const Matrix<S> hidden_out = matrix_of<S>(grads.hidden);
  const Matrix<acc_t<S>> weight_out = matrix_of<acc_t<S>>(grads.weight);
  acc_t<S>* bias_out = data<acc_t<S>>(grads.bias);
  const Tensor partial =
      like(linear.hidden, {kWide || !by_weight ? 0 : width, inner});  // one chunk's weight gradient
  const auto visit = [&](int64_t r, S* row) {                         // pred becomes its own gradient
    acc_t<S> sums[3];
    CFMVIT_ROWS(products<S, T>)(row, targets + r * stride, width, sums);
    const Cosine<acc_t<S>> cosine(sums, eps);
    if (losses) losses[r] = cosine.loss;
    if (!by_hidden && !by_weight) return;
    const acc_t<S> factor = grad_output ? grad_output[r] : acc_t<S>(1);
    CFMVIT_ROWS(combine<S, T>)
    (row, factor * cosine.to_pred, row, factor * cosine.to_target, targets + r * stride, width);
  };
  linear.each_chunk([&](Range chunk) {
    linear.each_row(chunk, visit, [&](Range rows, const Matrix<S>& pred) {
      if (by_hidden) blocks::multiply(hidden_out.window(rows), pred, linear.across.t());
    });
    if (!by_weight) return;
    const Matrix<S> pred = linear.pred.window({0, chunk.size()});
    blocks::for_blocks<S>(
        ceil_div(width, kBlock), std::min(kBlock, width) * inner * chunk.size(), [&](int64_t i) {
          const Range columns = block(i, kBlock, width);
          const Matrix<S> across = pred.window({0, chunk.size()}, columns).t();
          for (int64_t r = 0; r < chunk.size(); ++r) {
            CFMVIT_ROWS(accumulate<S>)
            (bias_out + columns.begin, across.data + r * across.col, columns.size());
          }
          if constexpr (kWide) {
            blocks::multiply(weight_out.window(columns), across, linear.rows.window(chunk), true);
          } else {  // sums over chunks stay in float32
            const Matrix<S> share = matrix_of<S>(partial).window(columns);
            blocks::multiply(share, across, linear.rows.window(chunk));
            CFMVIT_ROWS(accumulate<S>)(weight_out.window(columns).data, share.data, columns.size() * inner);
          }
        });
  });
}

}  // namespace

// grad (R,) -> gradients of hidden (R, H), weight (D, H), bias (D,); weight and bias in float32 or better
std::tuple<Tensor, Tensor, Tensor> linear_masked_cosine_loss_backward_cpu(Tensor grad, Tensor hidden,
                                                                          Tensor weight,
                                                                          std::optional<Tensor> bias,
                                                                          Tensor target, double eps) {
  constexpr const char* op = "linear_masked_cosine_loss_backward";
  check_linear(op, hidden, weight, bias, target);
  grad = checked_grad_output(op, grad, {hidden.size(0)}, acc_type(hidden));
  target = rows_of(target);
  const Gradients grads(hidden, weight, true, true);
  dispatch_pair(op, hidden, target, [&]<typename S, typename T>(S, T) {
    differentiate<S, T>(Linear<S>(hidden, weight, bias), target, eps, data<const acc_t<S>>(grad), nullptr,
                        grads);
  });
  return {grads.hidden, grads.weight, grads.bias};
}

// hidden (R, H), weight (D, H), bias (D,) or none, target (R, D) -> sum of the losses () and its gradients
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_masked_cosine_sum_cpu(Tensor hidden, Tensor weight,
                                                                        std::optional<Tensor> bias,
                                                                        Tensor target, double eps,
                                                                        bool needs_hidden,
                                                                        bool needs_weight) {
  constexpr const char* op = "linear_masked_cosine_sum";
  check_linear(op, hidden, weight, bias, target);
  target = rows_of(target);
  const Gradients grads(hidden, weight, needs_hidden, needs_weight);
  double total = 0;
  dispatch_pair(op, hidden, target, [&]<typename S, typename T>(S, T) {
    std::vector<acc_t<S>> losses(hidden.size(0));
    differentiate<S, T>(Linear<S>(hidden, weight, bias), target, eps, nullptr, losses.data(), grads);
    for (const acc_t<S> loss : losses) total += loss;
  });
  return {scalar_like(hidden, total, acc_type(hidden)), grads.hidden, grads.weight, grads.bias};
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  CFMVIT_IMPL(m, linear_masked_cosine_loss, &cfmvit::linear_masked_cosine_loss_cpu);
  CFMVIT_IMPL(m, linear_masked_cosine_sum, &cfmvit::linear_masked_cosine_sum_cpu);
  CFMVIT_IMPL(m, linear_masked_cosine_loss_backward, &cfmvit::linear_masked_cosine_loss_backward_cpu);
}
