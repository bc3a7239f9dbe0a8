// The feature loss with the decoder's last projection fused in, on the CPU. Rows go in chunks that fit a
// last-level cache, and within a chunk in blocks, each projected by one thread: the prediction is never held,
// and the bits do not depend on the number of threads.
#include <tuple>

#include "blocks.h"
#include "cosine.h"
#include "dispatch.h"
#include "reconstruction_checks.h"
#include "rows.h"

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
  const Tensor losses = like(hidden, {hidden.size(0)}, sum_type(hidden));
  dispatch_pair(op, hidden, target, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    const Linear<S> linear(hidden, weight, bias);
    const T* targets = data<const T>(target);
    const int64_t stride = target.stride(0), width = weight.size(0);
    Sum<S>* out = data<Sum<S>>(losses);
    const auto loss = [&](int64_t r, S* row) {
      Sum<S> sums[3];
      CFMVIT_ROWS(products<S, T>)(row, targets + r * stride, width, sums);
      out[r] = Cosine<Sum<S>>(sums, eps).loss;
    };
    linear.each_chunk([&](Range chunk) { linear.each_row(chunk, loss, [](Range, const Matrix<S>&) {}); });
  });
  return losses;
}

// grad (R,) -> gradients of hidden (R, H), weight (D, H), bias (D,); weight and bias in float32 or better
std::tuple<Tensor, Tensor, Tensor> linear_masked_cosine_loss_backward_cpu(Tensor grad, Tensor hidden,
                                                                          Tensor weight,
                                                                          std::optional<Tensor> bias,
                                                                          Tensor target, double eps) {
  constexpr const char* op = "linear_masked_cosine_loss_backward";
  check_linear(op, hidden, weight, bias, target);
  grad = checked_upstream(op, grad, {hidden.size(0)}, sum_type(hidden));
  target = rows_of(target);
  const int64_t width = weight.size(0), inner = weight.size(1);
  const Tensor grad_hidden = like(hidden, {hidden.size(0), inner});
  const Tensor grad_weight = torch::stable::new_zeros(weight, {width, inner}, sum_type(hidden));
  const Tensor grad_bias = torch::stable::new_zeros(weight, {width}, sum_type(hidden));
  dispatch_pair(op, hidden, target, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    const Linear<S> linear(hidden, weight, bias);
    const T* targets = data<const T>(target);
    const int64_t stride = target.stride(0);
    const Sum<S>* upstream = data<const Sum<S>>(grad);
    const Matrix<S> hidden_out = matrix_of<S>(grad_hidden);
    const Matrix<Sum<S>> weight_out = matrix_of<Sum<S>>(grad_weight);
    Sum<S>* bias_out = data<Sum<S>>(grad_bias);
    constexpr bool kWide = std::is_same_v<S, Sum<S>>;
    const Tensor part =
        like(hidden, {kWide ? 0 : width, inner});        // one chunk's share of the weight's gradient
    const auto differentiate = [&](int64_t r, S* row) {  // pred becomes its own gradient
      Sum<S> sums[3];
      CFMVIT_ROWS(products<S, T>)(row, targets + r * stride, width, sums);
      const Cosine<Sum<S>> cosine(sums, eps);
      CFMVIT_ROWS(combine<S, T>)
      (row, upstream[r] * cosine.to_pred, row, upstream[r] * cosine.to_target, targets + r * stride, width);
    };
    linear.each_chunk([&](Range chunk) {
      linear.each_row(chunk, differentiate, [&](Range rows, const Matrix<S>& grads) {
        blocks::multiply(hidden_out.window(rows), grads, linear.across.t());
      });
      const Matrix<S> grads = linear.pred.window({0, chunk.size()});
      blocks::for_blocks<S>(
          ceil_div(width, kBlock), std::min(kBlock, width) * inner * chunk.size(), [&](int64_t i) {
            const Range columns = block(i, kBlock, width);
            const Matrix<S> across = grads.window({0, chunk.size()}, columns).t();
            for (int64_t r = 0; r < chunk.size(); ++r) {
              CFMVIT_ROWS(accumulate<S>)(bias_out + columns.begin, across.data + r * across.col,
                                         columns.size());
            }
            if constexpr (kWide) {
              blocks::multiply(weight_out.window(columns), across, linear.rows.window(chunk), true);
            } else {  // sums over chunks stay in float32
              const Matrix<S> share = matrix_of<S>(part).window(columns);
              blocks::multiply(share, across, linear.rows.window(chunk));
              CFMVIT_ROWS(accumulate<S>)(weight_out.window(columns).data, share.data, columns.size() * inner);
            }
          });
    });
  });
  return {grad_hidden, grad_weight, grad_bias};
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  m.impl("linear_masked_cosine_loss", TORCH_BOX(&cfmvit::linear_masked_cosine_loss_cpu));
  m.impl("linear_masked_cosine_loss_backward", TORCH_BOX(&cfmvit::linear_masked_cosine_loss_backward_cpu));
}
