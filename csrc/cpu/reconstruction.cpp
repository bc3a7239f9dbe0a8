// The decoder's losses on the CPU: one loss per masked token, by a thread that owns its row. The masked index
// is followed where it is needed, so neither gathered rows nor patches are ever written.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>
#include <cmath>
#include <cstring>
#include <tuple>

#include "checks.h"
#include "dispatch.h"
#include "rows.h"
#include "stable.h"

namespace cfmvit {
namespace {

// Which token each masked row is: through an index, or itself.
struct Tokens {
  std::optional<Index> index;
  int64_t masked;

  int64_t operator()(int64_t b, int64_t j) const { return index ? (*index)(b, j) : j; }
};

Tokens checked_tokens(const char* op, const std::optional<Tensor>& index, int64_t batch, int64_t count) {
  if (!index) return {std::nullopt, count};
  const Index at = checked_index(op, "index", *index, batch, count);
  check_distinct(op, "index", at, batch, index->size(1), count);
  return {at, index->size(1)};
}

ScalarType sum_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// 1 - cos and the factors of its gradient: d loss / d pred = to_target * target + to_pred * pred.
template <typename Real>
struct Cosine {
  Real loss, to_target, to_pred;

  Cosine(const Real* products, Real eps) {
    const Real pt = products[0], pp = products[1], tt = products[2];
    const Real norm = std::sqrt(pp), bounded = std::max(norm, eps), target = std::max(std::sqrt(tt), eps);
    const Real cosine = pt / (bounded * target);
    loss = 1 - cosine;
    // A vector shorter than eps has a constant denominator; a zero vector gets no gradient at all.
    to_target = pp == 0 ? 0 : -1 / (bounded * target);
    to_pred = norm > eps ? cosine / pp : 0;
  }
};

void check_pair(const char* op, const Tensor& pred, const Tensor& target) {
  CFMVIT_CHECK(pred.dim() == 3, op, ": pred must have 3 dimensions, got ", pred.dim());
  check_shape(op, "target", target, {pred.size(0), pred.size(1), pred.size(2)});
  check_type(op, "target", target, pred);
}

}  // namespace

// pred, target (B, N, D), index (B, M) or none -> losses (B, M)
Tensor masked_cosine_loss_cpu(Tensor pred, Tensor target, std::optional<Tensor> index, double eps) {
  constexpr const char* op = "masked_cosine_loss";
  check_pair(op, pred, target);
  const int64_t batch = pred.size(0), width = pred.size(2);
  const Tokens tokens = checked_tokens(op, index, batch, pred.size(1));
  pred = rows_of(pred), target = rows_of(target);
  const Tensor losses = like(pred, {batch, tokens.masked}, sum_type(pred));
  dispatch_floating(op, pred.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    parallel(batch * tokens.masked, 4 * width, [&](int64_t task) {
      const int64_t b = task / tokens.masked, n = tokens(b, task % tokens.masked);
      Sum<S> sums[3];
      CFMVIT_ROWS(products<S, S>)
      (data<const S>(pred) + b * pred.stride(0) + n * pred.stride(1),
       data<const S>(target) + b * target.stride(0) + n * target.stride(1), width, sums);
      data<Sum<S>>(losses)[task] = Cosine<Sum<S>>(sums, static_cast<Sum<S>>(eps)).loss;
    });
  });
  return losses;
}

// grad (B, M) -> gradient of pred (B, N, D)
Tensor masked_cosine_loss_backward_cpu(Tensor grad, Tensor pred, Tensor target, std::optional<Tensor> index,
                                       double eps) {
  constexpr const char* op = "masked_cosine_loss_backward";
  check_pair(op, pred, target);
  const int64_t batch = pred.size(0), count = pred.size(1), width = pred.size(2);
  const Tokens tokens = checked_tokens(op, index, batch, count);
  check_shape(op, "grad", grad, {batch, tokens.masked});
  pred = rows_of(pred), target = rows_of(target);
  grad = torch::stable::contiguous(grad);
  const Tensor out = like(pred, {batch, count, width});
  std::vector<int64_t> place(batch * count, -1);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t j = 0; j < tokens.masked; ++j) place[b * count + tokens(b, j)] = b * tokens.masked + j;
  }
  dispatch_floating(op, pred.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    parallel(batch * count, 6 * width, [&](int64_t task) {
      const int64_t b = task / count, n = task % count;
      S* to = data<S>(out) + task * width;
      if (place[task] < 0) {
        std::memset(to, 0, width * sizeof(S));
        return;
      }
      const S* p = data<const S>(pred) + b * pred.stride(0) + n * pred.stride(1);
      const S* t = data<const S>(target) + b * target.stride(0) + n * target.stride(1);
      Sum<S> sums[3];
      CFMVIT_ROWS(products<S, S>)(p, t, width, sums);
      const Cosine<Sum<S>> cosine(sums, static_cast<Sum<S>>(eps));
      const Sum<S> g = data<const Sum<S>>(grad)[place[task]];
      CFMVIT_ROWS(combine<S, S>)(to, g * cosine.to_target, t, g * cosine.to_pred, p, width);
    });
  });
  return out;
}

namespace {

// Rows of a chunk of the fused projection: 1024 x 768 float32 are 3 MB, which a last-level cache holds.
constexpr int64_t kChunk = 1024;

Tensor narrow_rows(Tensor x, int64_t begin, int64_t end) {
  return torch::stable::narrow(x, 0, begin, end - begin);
}

void multiply(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  if (accumulate) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  }
}

// Calls visit(begin, end, pred) with the projection of each chunk of rows, in the dtype of `hidden`.
template <typename Visit>
void project(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias,
             const Visit& visit) {
  const int64_t rows = hidden.size(0), width = weight.size(0);
  const Tensor buffer = like(hidden, {std::min(rows, kChunk), width});
  const Tensor across = torch::stable::transpose(weight, 0, 1);
  for (int64_t begin = 0; begin < rows; begin += kChunk) {
    const int64_t end = std::min(rows, begin + kChunk);
    const Tensor pred = narrow_rows(buffer, 0, end - begin);
    multiply(pred, narrow_rows(hidden, begin, end), across, false);
    if (bias) {
      dispatch_floating("linear_masked_cosine_loss", hidden.scalar_type(), [&](auto zero) {
        using S = decltype(zero);
        parallel(end - begin, width, [&](int64_t r) {
          S* row = data<S>(pred) + r * width;
          CFMVIT_ROWS(add<S>)(row, row, data<const S>(*bias), width);
        });
      });
    }
    visit(begin, end, pred);
  }
}

void check_linear(const char* op, const Tensor& hidden, const Tensor& weight,
                  const std::optional<Tensor>& bias, const Tensor& target) {
  CFMVIT_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1), op,
               ": weight must have as many columns as hidden");
  check_shape(op, "target", target, {hidden.size(0), weight.size(0)});
  check_type(op, "weight", weight, hidden);
  if (bias) {
    check_shape(op, "bias", *bias, {weight.size(0)});
    check_type(op, "bias", *bias, hidden);
  }
}

}  // namespace

// hidden (R, H), weight (D, H), bias (D,) or none, target (R, D) of any floating dtype -> losses (R,)
Tensor linear_masked_cosine_loss_cpu(Tensor hidden, Tensor weight, std::optional<Tensor> bias, Tensor target,
                                     double eps) {
  constexpr const char* op = "linear_masked_cosine_loss";
  check_linear(op, hidden, weight, bias, target);
  target = rows_of(target);
  if (bias) bias = torch::stable::contiguous(*bias);
  const int64_t width = weight.size(0);
  const Tensor losses = like(hidden, {hidden.size(0)}, sum_type(hidden));
  project(hidden, weight, bias, [&](int64_t begin, int64_t end, const Tensor& pred) {
    dispatch_floating(op, pred.scalar_type(), [&](auto p) {
      dispatch_floating(op, target.scalar_type(), [&](auto t) {
        using S = decltype(p);
        using T = decltype(t);
        parallel(end - begin, 4 * width, [&](int64_t r) {
          Sum<S> sums[3];
          CFMVIT_ROWS(products<S, T>)
          (data<const S>(pred) + r * width, data<const T>(target) + (begin + r) * target.stride(0), width,
           sums);
          data<Sum<S>>(losses)[begin + r] = Cosine<Sum<S>>(sums, static_cast<Sum<S>>(eps)).loss;
        });
      });
    });
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
  check_shape(op, "grad", grad, {hidden.size(0)});
  target = rows_of(target), grad = torch::stable::contiguous(grad);
  if (bias) bias = torch::stable::contiguous(*bias);
  const int64_t width = weight.size(0);
  const ScalarType type = sum_type(hidden);
  const Tensor grad_hidden = like(hidden, {hidden.size(0), hidden.size(1)});
  const Tensor grad_weight = torch::stable::new_zeros(weight, {width, weight.size(1)}, type);
  const Tensor grad_bias = torch::stable::new_zeros(weight, {width}, type);
  const Tensor part = like(hidden, {width, hidden.size(1)});
  project(hidden, weight, bias, [&](int64_t begin, int64_t end, const Tensor& pred) {
    dispatch_floating(op, pred.scalar_type(), [&](auto p) {
      using S = decltype(p);
      dispatch_floating(op, target.scalar_type(), [&](auto t) {
        using T = decltype(t);
        parallel(end - begin, 6 * width, [&](int64_t r) {  // pred becomes its own gradient
          S* row = data<S>(pred) + r * width;
          const T* to = data<const T>(target) + (begin + r) * target.stride(0);
          Sum<S> sums[3];
          CFMVIT_ROWS(products<S, T>)(row, to, width, sums);
          const Cosine<Sum<S>> cosine(sums, static_cast<Sum<S>>(eps));
          const Sum<S> g = data<const Sum<S>>(grad)[begin + r];
          CFMVIT_ROWS(combine<S, T>)(row, g * cosine.to_pred, row, g * cosine.to_target, to, width);
        });
      });
      constexpr int64_t kColumns = 64;  // a thread owns the bias of so many columns
      parallel((width + kColumns - 1) / kColumns, (end - begin) * kColumns, [&](int64_t block) {
        const int64_t first = block * kColumns, count = std::min(kColumns, width - first);
        for (int64_t r = 0; r < end - begin; ++r) {
          CFMVIT_ROWS(accumulate<S>)(data<Sum<S>>(grad_bias) + first, data<const S>(pred) + r * width + first,
                                     count);
        }
      });
    });
    multiply(narrow_rows(grad_hidden, begin, end), pred, weight, false);
    const Tensor across = torch::stable::transpose(pred, 0, 1), rows = narrow_rows(hidden, begin, end);
    if (hidden.scalar_type() == type) {
      multiply(grad_weight, across, rows, true);
    } else {  // sums over chunks stay in float32
      multiply(part, across, rows, false);
      dispatch_floating(op, part.scalar_type(), [&](auto p) {
        using S = decltype(p);
        parallel(width, part.size(1), [&](int64_t r) {
          CFMVIT_ROWS(accumulate<S>)
          (data<Sum<S>>(grad_weight) + r * part.size(1), data<const S>(part) + r * part.size(1),
           part.size(1));
        });
      });
    }
  });
  return {grad_hidden, grad_weight, grad_bias};
}

namespace {

// One masked patch in MAE's order (row, column, channel), normalised, in the type of sums.
template <typename Real>
void pixel_target(const Real* image, const Tensor& images, int64_t n, int64_t columns, int64_t size,
                  bool normalize, Real* out) {
  const int64_t channels = images.size(1), width = channels * size * size;
  const int64_t top = n / columns * size, left = n % columns * size;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t y = 0; y < size; ++y) {
      const Real* row = image + c * images.stride(1) + (top + y) * images.stride(2) + left * images.stride(3);
      for (int64_t x = 0; x < size; ++x) out[(y * size + x) * channels + c] = row[x * images.stride(3)];
    }
  }
  if (!normalize) return;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < width; ++i) sum += out[i];
  const double mean = sum / width;
  for (int64_t i = 0; i < width; ++i) squares += (out[i] - mean) * (out[i] - mean);
  const double scale = 1 / std::sqrt(squares / (width - 1) + 1e-6);
  for (int64_t i = 0; i < width; ++i) out[i] = static_cast<Real>((out[i] - mean) * scale);
}

// Calls visit(task, row of pred, target) for each masked patch; images are in the type of pred's sums.
template <typename S, typename Visit>
void each_patch(const Tensor& pred, const Tensor& images, const Index& index, int64_t masked, int64_t size,
                bool normalize, const Visit& visit) {
  const int64_t width = pred.size(2), columns = images.size(3) / size;
  const bool all = pred.size(1) == images.size(2) / size * columns;
  parallel(pred.size(0) * masked, 8 * width, [&](int64_t task) {
    thread_local std::vector<Sum<S>> target;
    target.resize(width);
    const int64_t b = task / masked, j = task % masked, n = index(b, j);
    pixel_target<Sum<S>>(data<const Sum<S>>(images) + b * images.stride(0), images, n, columns, size,
                         normalize, target.data());
    visit(task, b * pred.size(1) + (all ? n : j), target.data());
  });
}

Index check_pixels(const char* op, const Tensor& pred, const Tensor& images, const Tensor& index,
                   int64_t size) {
  CFMVIT_CHECK(images.dim() == 4 && size > 0 && images.size(2) % size == 0 && images.size(3) % size == 0, op,
               ": patch_size must divide the images' sides, got ", size);
  const int64_t count = images.size(2) / size * (images.size(3) / size);
  const Index at = checked_index(op, "index", index, images.size(0), count);
  check_distinct(op, "index", at, images.size(0), index.size(1), count);
  const int64_t rows = pred.dim() == 3 && pred.size(1) == count ? count : index.size(1);
  check_shape(op, "pred", pred, {images.size(0), rows, images.size(1) * size * size});
  CFMVIT_CHECK(images.scalar_type() == sum_type(pred), op,
               ": images must be float32, or float64 with a float64 pred");
  return at;
}

}  // namespace

// pred (B, N or M, P * P * C), images (B, C, H, W), index (B, M) -> losses (B, M)
Tensor masked_pixel_loss_cpu(Tensor pred, Tensor images, Tensor index, int64_t patch_size, bool normalize) {
  constexpr const char* op = "masked_pixel_loss";
  const Index at = check_pixels(op, pred, images, index, patch_size);
  pred = torch::stable::contiguous(pred);
  const int64_t masked = index.size(1), width = pred.size(2);
  const Tensor losses = like(images, {pred.size(0), masked});
  dispatch_floating(op, pred.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    each_patch<S>(pred, images, at, masked, patch_size, normalize,
                  [&](int64_t task, int64_t row, const Sum<S>* target) {
                    const S* p = data<const S>(pred) + row * width;
                    double sum = 0;
                    for (int64_t i = 0; i < width; ++i) {
                      const double difference = widen(p[i]) - target[i];
                      sum += difference * difference;
                    }
                    data<Sum<S>>(losses)[task] = static_cast<Sum<S>>(sum / width);
                  });
  });
  return losses;
}

// grad (B, M) -> gradient of pred
Tensor masked_pixel_loss_backward_cpu(Tensor grad, Tensor pred, Tensor images, Tensor index,
                                      int64_t patch_size, bool normalize) {
  constexpr const char* op = "masked_pixel_loss_backward";
  const Index at = check_pixels(op, pred, images, index, patch_size);
  const int64_t masked = index.size(1), width = pred.size(2);
  check_shape(op, "grad", grad, {pred.size(0), masked});
  pred = torch::stable::contiguous(pred), grad = torch::stable::contiguous(grad);
  const std::vector<int64_t> sizes{pred.size(0), pred.size(1), width};
  const Tensor out = torch::stable::new_zeros(pred, sizes);
  dispatch_floating(op, pred.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    each_patch<S>(pred, images, at, masked, patch_size, normalize,
                  [&](int64_t task, int64_t row, const Sum<S>* target) {
                    const Sum<S> factor = 2 * data<const Sum<S>>(grad)[task] / width;
                    CFMVIT_ROWS(combine<S, Sum<S>>)
                    (data<S>(out) + row * width, factor, data<const S>(pred) + row * width, -factor, target,
                     width);
                  });
  });
  return out;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  m.impl("masked_cosine_loss", TORCH_BOX(&cfmvit::masked_cosine_loss_cpu));
  m.impl("masked_cosine_loss_backward", TORCH_BOX(&cfmvit::masked_cosine_loss_backward_cpu));
  m.impl("linear_masked_cosine_loss", TORCH_BOX(&cfmvit::linear_masked_cosine_loss_cpu));
  m.impl("linear_masked_cosine_loss_backward", TORCH_BOX(&cfmvit::linear_masked_cosine_loss_backward_cpu));
  m.impl("masked_pixel_loss", TORCH_BOX(&cfmvit::masked_pixel_loss_cpu));
  m.impl("masked_pixel_loss_backward", TORCH_BOX(&cfmvit::masked_pixel_loss_backward_cpu));
}
