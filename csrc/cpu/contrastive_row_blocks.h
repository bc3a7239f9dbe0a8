// What the contrastive losses share on the CPU: a sweep over the logits in strips of rows, which turns tiles
// of similarities into gradients and those into the gradients of the features by two more matrix products.
#pragma once

#include <algorithm>
#include <array>

#include "cpu/contrastive_tile.h"
#include "cpu/matmul_blocks.h"

namespace cfmvit::contrastive {

using namespace blocks;

constexpr int64_t kCols =
    512;  // texts of a block, which also owns their gradient; 128 x 512 float32 stay in a core's L2
constexpr int64_t kStripBytes = int64_t{1} << 26;  // bound of the workspace

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

// Rows of a strip: about 3 % of the logits, within kStripBytes.
inline int64_t strip_rows(int64_t images, int64_t texts, int64_t item_size) {
  const int64_t most = std::max<int64_t>(kStripBytes / (texts * item_size), 32);
  return std::min(std::clamp<int64_t>(images / 32, 128, 1024), most) / 32 * 32;
}

// The entries of one block of a strip that count beyond bfloat16; none where factors are wider.
using Remainders = std::vector<Remainder>;

template <typename T, typename S>
void multiply_strip_by_text(const Towers<T, S>& towers, Range rows, Matrix<T> logits,
                            const std::vector<Remainders>& remainders) {
  constexpr int64_t kRows = 128, kWidth = 128;
  const int64_t across = ceil_div(towers.text.cols, kWidth);
  for_blocks<T>(ceil_div(rows.size(), kRows) * across, kRows * kWidth * towers.text.rows, [&](int64_t i) {
    const Range part = block(i / across, kRows, rows.size()),
                width = block(i % across, kWidth, towers.text.cols);
    const Matrix<const S> text = towers.text.window({0, towers.text.rows}, width);
    const Matrix<T> out = towers.grad_image.window(rows).window({0, rows.size()}, width);
    multiply(out.window(part), logits.window(part), text);
    if constexpr (std::is_same_v<S, BFloat16>) {
      for (size_t j = 0; j < remainders.size(); ++j) {
        const Matrix<const S> texts = text.window({int64_t(j) * kCols, text.rows});
        const auto begin = std::ranges::lower_bound(remainders[j], part.begin, {}, &Remainder::row);
        for (auto x = begin; x != remainders[j].end() && x->row < part.end; ++x) {
          add_scaled(out.data + x->row * out.row, x->value, texts.data + x->col * texts.row, width.size());
        }
      }
    }
  });
}

// Calls pull(tile, rows, cols) for every tile of similarities: it turns them into gradients in place and
// returns Sums sums, whose totals over all tiles come back.
template <size_t Sums, typename T, typename S, typename PullTile>
std::array<double, Sums> sweep(const Towers<T, S>& towers, const PullTile& pull) {
  const int64_t images = towers.image.rows, texts = towers.text.rows,
                step = strip_rows(images, texts, sizeof(T));
  const int64_t stride = texts + 16;  // a power of two would put a column of the strip into few cache sets
  const int64_t blocks = ceil_div(texts, kCols);
  std::vector<T> strip(std::min(step, images) * stride);
  std::vector<std::array<double, Sums>> parts(blocks);
  const bool by_image = towers.grad_image.rows > 0, by_text = towers.grad_text.rows > 0;
  const bool rounds = std::is_same_v<S, BFloat16> && (by_image || by_text);
  std::vector<Remainders> remainders(rounds ? blocks : 0);
  for (int64_t top = 0; top < images; top += step) {
    const Range rows{top, std::min(top + step, images)};
    const Matrix<T> logits{strip.data(), rows.size(), texts, stride};
    for_blocks<T>(blocks, rows.size() * std::min(kCols, texts) * towers.text.cols, [&](int64_t j) {
      const Range cols = block(j, kCols, texts);
      const Matrix<T> tile = logits.window({0, rows.size()}, cols);
      multiply(tile, towers.image.window(rows), towers.text.window(cols).t());
      const std::array<double, Sums> sums = pull(tile, rows, cols);
      for (size_t k = 0; k < Sums; ++k) parts[j][k] += sums[k];
      const Matrix<T> out = towers.grad_text.window(by_text ? cols : Range{0, 0});
      const Matrix<const S> image = towers.image.window(rows);
      if (by_text) multiply(out, tile.t(), image, top > 0);
      if constexpr (std::is_same_v<S, BFloat16>) {
        if (rounds) find_remainders(tile.data, tile.rows, tile.cols, tile.row, remainders[j]);
        if (!rounds || !by_text) return;
        for (const auto& [row, col, value] : remainders[j]) {
          add_scaled(out.data + col * out.row, value, image.data + row * image.row, image.cols);
        }
      }
    });
    if (by_image) multiply_strip_by_text(towers, rows, logits, remainders);
  }
  std::array<double, Sums> totals{};
  for (const auto& part : parts) {
    for (size_t k = 0; k < Sums; ++k) totals[k] += part[k];
  }
  return totals;
}

}  // namespace cfmvit::contrastive
