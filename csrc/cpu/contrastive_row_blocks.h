// What the contrastive losses share on the CPU: a loop over row blocks of the logits, which turns tiles of
// similarities into gradients and those into the gradients of the features by two more matrix products.
#pragma once

#include <algorithm>
#include <array>

#include "cpu/contrastive_block_sizes.h"
#include "cpu/contrastive_residuals.h"
#include "cpu/contrastive_tile.h"
#include "cpu/matmul_blocks.h"

namespace cfmvit::contrastive {

using namespace blocks;

// Row-major, in `type`.
inline Tensor prepared(const Tensor& x, ScalarType type) {
  return dense(x.scalar_type() == type ? x : torch::stable::to(x, type));
}

inline Tensor cast(const Tensor& x, ScalarType type) {
  return x.scalar_type() == type ? x : torch::stable::to(x, type);
}

inline ScalarType compute_type(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The type that features are multiplied in: bfloat16 stays where the processor has products for it, with sums
// in float32; everything else is widened first.
inline ScalarType factor_type(const Tensor& features) {
  const bool narrow = features.scalar_type() == ScalarType::BFloat16 && kHasAvx512BFloat16;
  return narrow ? ScalarType::BFloat16 : compute_type(features);
}

// Calls run(T{}, S{}) with the types of sums and of factors.
template <typename Run>
void dispatch_factors(const Tensor& features, const Run& run) {
  switch (factor_type(features)) {
    case ScalarType::Double:
      return run(double{}, double{});
    case ScalarType::BFloat16:
      return run(float{}, BFloat16{});
    default:
      return run(float{}, float{});
  }
}

// A tensor for the gradient of features, of no elements where it is not needed.
inline Tensor grad_of(const Tensor& x, bool needed) {
  return needed ? like(x, {x.size(0), x.size(1)}, compute_type(x)) : like(x, {0, 0}, compute_type(x));
}

template <typename T, typename S>
struct Towers {
  Matrix<const S> image, text;      // (B, D), (T, D)
  Matrix<T> grad_image, grad_text;  // the same shapes; no rows where not wanted

  Towers(const Tensor& image, const Tensor& text, const Tensor& grad_image, const Tensor& grad_text)
      : image(matrix_of<const S>(image)),
        text(matrix_of<const S>(text)),
        grad_image(matrix_of<T>(grad_image)),
        grad_text(matrix_of<T>(grad_text)) {}
};

// Similarities of a tile, in products of the shapes that the forward uses: BLAS may sum another shape in
// another order, and what the forward found to be the largest must be that again.
template <typename T, typename S>
void multiply_tile(Matrix<T> tile, Matrix<const S> image, Matrix<const S> text, int64_t images) {
  const bool any_shape = std::is_same_v<T, float> && kHasAvx512;  // sums of matmul.h run along k alone
  const int64_t step = any_shape ? tile.rows : product_rows(images);
  for (int64_t i = 0; i < ceil_div(tile.rows, step); ++i) {
    const Range rows = block(i, step, tile.rows);
    multiply(tile.window(rows), image.window(rows), text.t());
  }
}

// grad_image = logits text for a block of rows, and what rounding took from the logits' gradients.
template <typename T, typename S>
void multiply_rows_by_text(const Towers<T, S>& towers, Range rows, int64_t first_pair, Matrix<S> logits,
                           const std::vector<Residuals>& residuals) {
  const int64_t across = ceil_div(towers.text.cols, kGradCols);
  for_blocks<T>(
      ceil_div(rows.size(), kGradRows) * across, kGradRows * kGradCols * towers.text.rows, [&](int64_t i) {
        const Range part = block(i / across, kGradRows, rows.size()),
                    width = block(i % across, kGradCols, towers.text.cols);
        const Matrix<const S> text = towers.text.window({0, towers.text.rows}, width);
        const Matrix<T> out = towers.grad_image.window(rows).window({0, rows.size()}, width);
        multiply(out.window(part), logits.window(part), text);
        if constexpr (std::is_same_v<S, BFloat16>) {
          const auto add = [&](int64_t row, int64_t col, float value) {
            add_scaled(out.data + row * out.row, value, text.data + col * text.row, width.size());
          };
          for (size_t j = 0; j < residuals.size(); ++j) {
            const std::vector<Residual>& large = residuals[j].large;
            auto x = std::ranges::lower_bound(large, part.begin, {}, &Residual::row);
            for (; x != large.end() && x->row < part.end; ++x) add(x->row, j * kCols + x->col, x->value);
          }
          for (int64_t r = part.begin; r < part.end && rows.begin + r + first_pair < text.rows; ++r) {
            float sum = 0;
            for (const Residuals& of_block : residuals) sum += of_block.rows[r];
            add(r, rows.begin + r + first_pair, sum);
          }
        }
      });
}

// grad_text += logits^T image for a block of rows and of columns, likewise.
template <typename T, typename S>
void multiply_cols_by_image(const Towers<T, S>& towers, Range rows, Range cols, int64_t first_pair,
                            Matrix<S> tile, const Residuals& residuals) {
  const Matrix<T> out = towers.grad_text.window(cols);
  multiply(out, tile.t(), towers.image.window(rows), rows.begin > 0);
  if constexpr (std::is_same_v<S, BFloat16>) {
    const auto add = [&](int64_t row, int64_t col, float value) {
      add_scaled(out.data + col * out.row, value, towers.image.data + row * towers.image.row, out.cols);
    };
    for (const auto& [row, col, value] : residuals.large) add(rows.begin + row, col, value);
    // The columns' sums are complete with the last block of rows.
    for (int64_t c = 0; c < cols.size() && rows.end == towers.image.rows; ++c) {
      const int64_t pair = cols.begin + c - first_pair;
      if (pair >= 0 && pair < towers.image.rows) add(pair, c, residuals.cols[c]);
    }
  }
}

// Where the similarities are that become these factors: in the same place, unless the factors are rounded.
template <typename T, typename S>
Matrix<T> place_of_tile(Matrix<S> factors) {
  if constexpr (std::is_same_v<S, T>) {
    return factors;
  } else {
    constexpr int64_t kStride = kCols + 16;
    thread_local std::vector<T> scratch;
    scratch.resize(std::max<size_t>(scratch.size(), factors.rows * kStride));
    return {scratch.data(), factors.rows, factors.cols, kStride};
  }
}

// Calls grad_tile(tile, rows, cols) for every tile of similarities: it turns them into gradients in place and
// returns Sums sums, whose totals over all tiles come back. first_pair: column of the pair that the first row
// cancels against, of all texts' number if none.
template <size_t Sums, typename T, typename S, typename GradTile>
std::array<double, Sums> for_row_blocks(const Towers<T, S>& towers, int64_t first_pair,
                                        const GradTile& grad_tile) {
  const int64_t images = towers.image.rows, texts = towers.text.rows,
                step = backward_rows(images, texts, sizeof(S));
  const int64_t stride = texts + 32;  // a power of two would put a column of the block into few cache sets
  const int64_t blocks = ceil_div(texts, kCols);
  std::vector<S> workspace(std::min(step, images) * stride);
  std::vector<std::array<double, Sums>> partial(blocks);
  const bool by_image = towers.grad_image.rows > 0, by_text = towers.grad_text.rows > 0;
  std::vector<Residuals> residuals(blocks);
  for (int64_t top = 0; top < images; top += step) {
    const Range rows{top, std::min(top + step, images)};
    const Matrix<S> logits{workspace.data(), rows.size(), texts, stride};
    for_blocks<T>(blocks, rows.size() * std::min(kCols, texts) * towers.text.cols, [&](int64_t j) {
      const Range cols = block(j, kCols, texts);
      const Matrix<S> factors = logits.window({0, rows.size()}, cols);
      const Matrix<T> tile = place_of_tile<T>(factors);
      multiply_tile(tile, towers.image.window(rows), towers.text.window(cols), images);
      const std::array<double, Sums> sums = grad_tile(tile, rows, cols);
      for (size_t k = 0; k < Sums; ++k) partial[j][k] += sums[k];
      if constexpr (std::is_same_v<S, BFloat16>) {
        if (by_image || by_text) round_tile(tile, factors, residuals[j]);
      }
      if (by_text) multiply_cols_by_image(towers, rows, cols, first_pair, factors, residuals[j]);
    });
    if (by_image) multiply_rows_by_text(towers, rows, first_pair, logits, residuals);
  }
  std::array<double, Sums> totals{};
  for (const auto& sums : partial) {
    for (size_t k = 0; k < Sums; ++k) totals[k] += sums[k];
  }
  return totals;
}

}  // namespace cfmvit::contrastive
