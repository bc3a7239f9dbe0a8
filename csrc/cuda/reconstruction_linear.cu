// The feature loss with the decoder's last projection fused in, on a GPU: rows go in chunks, each projected
// by torch's matrix product into one buffer that mostly stays in the cache, read there by the row kernel. The
// prediction is never held.
#include <cstdlib>
#include <tuple>

#include "cuda/cosine_pairs.h"
#include "cuda/launch.h"
#include "cuda/matmul.h"
#include "kernels/partial_sums.cuh"
#include "kernels/reconstruction_linear.cuh"
#include "torch/dispatch.h"
#include "torch/reconstruction_checks.h"
#include "torch/registration.h"

CFMVIT_COSINE_PAIRS(extern)

namespace cfmvit {
namespace {

constexpr int64_t kBlock = kernels::kRowsOfBlock;

// Rows of a chunk: in whole blocks of the gradient's kernel, what of the projection stays in the cache of an
// H100. Where they fit, multiples of 16,896, which tiles of 128 x 256, and two of those blocks at a time, cut
// into whole waves on its 132 multiprocessors.
// CFMVIT_CHUNK_ROWS is defined by tests, which have few rows and want many chunks.
int64_t rows_of_chunk(int64_t rows, [[maybe_unused]] int64_t row_bytes) {
#ifdef CFMVIT_CHUNK_ROWS
  const int64_t most = CFMVIT_CHUNK_ROWS;
#else
  constexpr int64_t kCacheBytes = 33 * 1048576, kWaves = 132 * 128;
  const int64_t fit = std::min<int64_t>(kCacheBytes / std::max<int64_t>(1, row_bytes), INT32_MAX);
  const int64_t most = fit >= kWaves ? fit / kWaves * kWaves : fit;
#endif
  return std::max(kBlock, std::min(most / kBlock, kernels::ceil_div(rows, kBlock)) * kBlock);
}

// Chunks whose gradients of a weight of `size` elements are held, in the cache, and then added by one launch.
int64_t chunks_of_sum(int64_t size, int64_t chunks) {
  constexpr int64_t kMost = 4, kElements = 4 * 1048576;
  return std::max<int64_t>(1, std::min({kMost, kElements / std::max<int64_t>(size, 1), chunks}));
}

// The projection of a chunk of rows, and what the row kernels read.
struct Projection {
  Tensor hidden, across, target, pred;  // (R, H), (H, D), (R, D), (chunk, D)
  std::optional<Tensor> bias;
  int64_t chunk;

  Projection(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& added, const Tensor& wanted)
      : hidden(x), across(torch::stable::transpose(weight, 0, 1)), target(rows_of(wanted)) {
    if (added) bias = dense(*added);
    const int64_t width = weight.size(0);
    chunk = rows_of_chunk(x.size(0), width * bytes(x.scalar_type()));
    pred = like(x, {chunk, width});
  }

  int64_t rows() const { return hidden.size(0); }
  int64_t width() const { return pred.size(1); }

  // Calls visit(first row, rows, their hidden, their pred) for each chunk.
  template <typename Visit>
  void each_chunk(const Visit& visit) {
    for (int64_t first = 0; first < rows(); first += chunk) {
      const int64_t count = std::min(chunk, rows() - first);
      const Tensor in = torch::stable::narrow(hidden, 0, first, count),
                   out = torch::stable::narrow(pred, 0, 0, count);
      bias ? multiply_plus(out, in, across, *bias) : multiply(out, in, across);
      visit(first, count, in, out);
    }
  }

  template <typename S, typename T>
  kernels::Pairs<S, T> pairs(int64_t first, double eps) const {
    return {{data<const S>(pred), 0, width()},
            {data<const T>(target) + first * target.stride(0), 0, target.stride(0)},
            width(),
            eps};
  }

 private:
  static int64_t bytes(ScalarType type) {
    return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  }
};

}  // namespace

// hidden (R, H), weight (D, H), bias (D,) or none, target (R, D) -> losses (R,)
Tensor linear_masked_cosine_loss_cuda(Tensor hidden, Tensor weight, std::optional<Tensor> bias, Tensor target,
                                      double eps) {
  constexpr const char* op = "linear_masked_cosine_loss";
  check_linear(op, hidden, weight, bias, target);
  const Tensor losses = like(hidden, {hidden.size(0)}, acc_type(hidden));
  Projection projection(hidden, weight, bias, target);
  dispatch_pair(op, hidden, target, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    projection.each_chunk([&](int64_t first, int64_t count, const Tensor&, const Tensor& pred) {
      const kernels::CosineLosses<S, T> args{
          projection.pairs<S, T>(first, eps), Index{}, data<acc_t<S>>(losses) + first, 1, count, count};
      on_device(pred, [&](cudaStream_t stream) { kernels::cosine_losses(args, stream); });
    });
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

// Projects each chunk of rows and differentiates it. grad_output (R,); losses (R,) where wanted, which the
// row kernel has at hand.
void differentiate(const char* op, Projection& projection, const Tensor& weight, double eps,
                   const Tensor& grad_output, const std::optional<Tensor>& losses, const Gradients& grads) {
  const int64_t rows = projection.rows(), width = weight.size(0), inner = weight.size(1);
  const ScalarType sums = acc_type(weight);
  const bool wide = weight.scalar_type() == sums, by_hidden = grads.hidden.size(0) > 0,
             by_weight = grads.weight.size(0) > 0, by_bias = by_weight && projection.bias;
  // The weight's gradients of several chunks.
  const int64_t most =
      wide || !by_weight ? 0 : chunks_of_sum(width * inner, kernels::ceil_div(rows, projection.chunk));
  Tensor held = like(weight, {most * width, inner}, sums);
  int64_t chunks = 0;
  // Sums over the rows of the same blocks of all chunks.
  const int64_t partials = by_bias ? projection.chunk / kBlock : 0;
  const Tensor partial = torch::stable::new_zeros(weight, {partials, width}, sums);
  dispatch_pair(op, projection.pred, projection.target, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    projection.each_chunk([&](int64_t first, int64_t count, const Tensor& in, const Tensor& pred) {
      const kernels::ProjectionGradient<S, T> args{projection.pairs<S, T>(first, eps),
                                                   data<const acc_t<S>>(grad_output) + first,
                                                   data<S>(pred),
                                                   losses ? data<acc_t<S>>(*losses) + first : nullptr,
                                                   by_bias ? data<acc_t<S>>(partial) : nullptr,
                                                   count};
      on_device(pred, [&](cudaStream_t stream) { kernels::projection_gradient(args, stream); });
      if (by_hidden) {
        Tensor all = grads.hidden;  // torch::stable::narrow takes no constant
        multiply(torch::stable::narrow(all, 0, first, count), pred, weight);
      }
      if (!by_weight) return;
      const Tensor turned = torch::stable::transpose(pred, 0, 1);
      if (wide) return multiply_add(grads.weight, turned, in);
      multiply_wide(torch::stable::narrow(held, 0, width * chunks++, width), turned, in);
      if (chunks < most && first + count < rows) return;
      on_device(pred, [&](cudaStream_t stream) {
        kernels::add(data<acc_t<S>>(grads.weight), data<const acc_t<S>>(held), chunks, width * inner, stream);
      });
      chunks = 0;
    });
    if (!by_bias) return;
    on_device(weight, [&](cudaStream_t stream) {
      kernels::column_sums(data<const acc_t<S>>(partial), width, data<acc_t<S>>(grads.bias), partials,
                           partials, width, stream);
    });
  });
}

}  // namespace

// grad (R,) -> gradients of hidden (R, H), weight (D, H), bias (D,), the last zero without one; weight and
// bias in float32 or better
std::tuple<Tensor, Tensor, Tensor> linear_masked_cosine_loss_backward_cuda(Tensor grad, Tensor hidden,
                                                                           Tensor weight,
                                                                           std::optional<Tensor> bias,
                                                                           Tensor target, double eps) {
  constexpr const char* op = "linear_masked_cosine_loss_backward";
  check_linear(op, hidden, weight, bias, target);
  grad = checked_grad_output(op, grad, {hidden.size(0)}, acc_type(hidden));
  const Gradients grads(hidden, weight, true, true);
  Projection projection(hidden, weight, bias, target);
  differentiate(op, projection, weight, eps, grad, std::nullopt, grads);
  return {grads.hidden, grads.weight, grads.bias};
}

// hidden (R, H), weight (D, H), bias (D,) or none, target (R, D) -> sum of the losses () and its gradients
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_masked_cosine_sum_cuda(Tensor hidden, Tensor weight,
                                                                         std::optional<Tensor> bias,
                                                                         Tensor target, double eps,
                                                                         bool needs_hidden,
                                                                         bool needs_weight) {
  constexpr const char* op = "linear_masked_cosine_sum";
  check_linear(op, hidden, weight, bias, target);
  const int64_t rows = hidden.size(0);
  const Gradients grads(hidden, weight, needs_hidden, needs_weight);
  const Tensor losses = needs_hidden || needs_weight
                            ? like(hidden, {rows}, acc_type(hidden))
                            : linear_masked_cosine_loss_cuda(hidden, weight, bias, target, eps);
  if (needs_hidden || needs_weight) {
    Tensor ones = like(hidden, {rows}, acc_type(hidden));
    ones = torch::stable::fill_(ones, 1.0);
    Projection projection(hidden, weight, bias, target);
    differentiate(op, projection, weight, eps, ones, losses, grads);
  }
  constexpr int64_t kLosses = 1024;  // of a partial sum
  const int64_t partials = std::max<int64_t>(kernels::ceil_div(rows, kLosses), 1);
  const Tensor partial = like(losses, {partials}), total = like(losses, {});
  dispatch_floating(op, losses.scalar_type(), [&]<typename S>(S) {
    if constexpr (std::is_same_v<S, acc_t<S>>) {
      on_device(losses, [&](cudaStream_t stream) {
        kernels::column_sums(data<const S>(losses), 1, data<S>(partial), rows, kLosses, 1, stream);
        kernels::column_sums(data<const S>(partial), 1, data<S>(total), partials, partials, 1, stream);
      });
    }
  });
  return {total, grads.hidden, grads.weight, grads.bias};
}

// grad (), the inputs of the sum and its gradients -> these times grad, in the dtype of the inputs
std::tuple<Tensor, Tensor, Tensor> linear_masked_cosine_sum_backward_cuda(Tensor grad, Tensor hidden, Tensor,
                                                                          std::optional<Tensor>,
                                                                          Tensor grad_hidden,
                                                                          Tensor grad_weight,
                                                                          Tensor grad_bias) {
  constexpr const char* op = "linear_masked_cosine_sum_backward";
  const ScalarType type = hidden.scalar_type();
  grad = checked_grad_output(op, grad, {}, acc_type(hidden));
  const auto scaled = [&](const char* name, const Tensor& gradient, const Tensor& of_type) {
    check_type(op, name, gradient, of_type);
    const Tensor in = dense(gradient), out = like(in, {in.sizes().begin(), in.sizes().end()}, type);
    dispatch_floating(op, type, [&]<typename S>(S zero) {
      const auto run = [&]<typename In>(In) {
        on_device(in, [&](cudaStream_t stream) {
          kernels::scale(data<const In>(in), data<const acc_t<In>>(grad), data<S>(out), in.numel(), stream);
        });
      };
      in.scalar_type() == type ? run(zero) : run(acc_t<S>{});
    });
    return out;
  };
  return {scaled("grad_hidden", grad_hidden, hidden), scaled("grad_weight", grad_weight, grad),
          scaled("grad_bias", grad_bias, grad)};
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) {
  CFMVIT_IMPL(m, linear_masked_cosine_loss, &cfmvit::linear_masked_cosine_loss_cuda);
  CFMVIT_IMPL(m, linear_masked_cosine_sum, &cfmvit::linear_masked_cosine_sum_cuda);
  CFMVIT_IMPL(m, linear_masked_cosine_sum_backward, &cfmvit::linear_masked_cosine_sum_backward_cuda);
  CFMVIT_IMPL(m, linear_masked_cosine_loss_backward, &cfmvit::linear_masked_cosine_loss_backward_cuda);
}
