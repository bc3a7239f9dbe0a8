// contrastive_lse and its backward on the CPU: matrix products in blocks (one thread each) with the
// passes of contrastive_tile.h in between. No more than a strip of the B x T logits exists at any time.
//
// Deterministic for any number of threads: blocks depend on the sizes alone, a block's product runs on one
// thread, every sum has one owner and a fixed order.
#include <cmath>

#include "cpu/contrastive_ops.h"
#include "cpu/contrastive_row_blocks.h"
#include "cpu/contrastive_tile.h"
#include "torch/contrastive_checks.h"
#include "torch/registration.h"

namespace cfmvit::contrastive {
namespace {

// Rows of a strip of the forward: column sums exist once per strip, so that there are at most 64 of them.
int64_t forward_strip(int64_t images) {
  const int64_t least = images >= 2048 ? 128 : 32;
  return images > 64 * least ? ceil_div(images, 64 * 128) * 128 : least;
}

template <typename S>
double dot(const S* a, const S* b, int64_t n) {
  constexpr int64_t kSums = 8;
  std::array<double, kSums> sums{};
  for (int64_t k = 0; k < n; k += kSums) {
    for (int64_t l = 0; l < std::min(kSums, n - k); ++l) {
      sums[l] += double(widen(a[k + l])) * widen(b[k + l]);
    }
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

template <typename T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

template <typename T, typename S>
struct Forward {
  Matrix<const S> image, text;  // (B, D), (T, D)
  T scale;
  int64_t label_offset;                     // T: no pairs
  const int64_t *image_group, *text_group;  // (B,), (T,), or null where the maxima are not wanted
  T *positive, *image_lse, *text_lse, *image_max, *text_max;

  struct Columns {  // what one strip of images knows of each text
    std::vector<T> max, sum, others;
  };

  void run() const {
    const int64_t step = forward_strip(image.rows), texts = text.rows;
    std::vector<Columns> strips(ceil_div(image.rows, step));
    for_blocks<T>(strips.size(), step * texts * text.cols, [&](int64_t i) {
      strips[i] = {std::vector<T>(texts, kLowest<T>), std::vector<T>(texts),
                   std::vector<T>(text_group ? texts : 0, kLowest<T>)};
      add_strip(block(i, step, image.rows), strips[i]);
    });
    for (int64_t j = 0; j < texts; ++j) merge_column(j, strips);
  }

  void add_strip(Range rows, Columns& columns) const {
    const int64_t height = std::min<int64_t>(rows.size(), 128);
    std::vector<T> tile(height * kCols), scratch(kCols);
    for (int64_t top = rows.begin; top < rows.end; top += height) {
      const Range band{top, std::min(top + height, rows.end)};
      std::vector<T> max(band.size(), kLowest<T>);
      std::vector<double> sum(band.size());
      if (text_group) std::fill(image_max + band.begin, image_max + band.end, kLowest<T>);
      for (int64_t j = 0; j < text.rows; j += kCols) {
        const Range cols{j, std::min(j + kCols, text.rows)};
        multiply(Matrix<T>{tile.data(), band.size(), cols.size(), kCols}, image.window(band),
                 text.window(cols).t());
        add_tile<T>(tile.data(), band.size(), cols.size(), kCols, band.begin + label_offset - j, scale,
                    {max.data(), sum.data(), &columns.max[j], &columns.sum[j]}, scratch.data());
        if (text_group) {
          max_of_others<T>(tile.data(), band.size(), cols.size(), kCols, image_group + band.begin,
                           text_group + j, image_max + band.begin, &columns.others[j]);
        }
      }
      for (int64_t r = band.begin; r < band.end; ++r) {
        image_lse[r] = max[r - band.begin] + std::log(sum[r - band.begin]);
        if (label_offset == text.rows) continue;
        positive[r] =
            scale * dot(image.data + r * image.row, text.data + (r + label_offset) * text.row, image.cols);
      }
    }
  }

  void merge_column(int64_t j, const std::vector<Columns>& strips) const {
    T max = kLowest<T>, others = kLowest<T>;
    for (const Columns& strip : strips) {
      max = std::max(max, strip.max[j]);
      if (text_group) others = std::max(others, strip.others[j]);
    }
    double sum = 0;
    for (const Columns& strip : strips) {  // a strip without negatives has -inf and 0
      if (strip.sum[j] != 0) sum += strip.sum[j] * std::exp(double(strip.max[j]) - double(max));
    }
    text_lse[j] = max + std::log(sum);
    if (text_group) text_max[j] = others;
  }
};

}  // namespace

Lse contrastive_lse(Tensor image, Tensor text, Tensor logit_scale, std::optional<int64_t> label_offset,
                    std::optional<Tensor> image_groups, std::optional<Tensor> text_groups) {
  check_contrastive("contrastive_lse", image, text, logit_scale, label_offset);
  check_groups("contrastive_lse", image, text, image_groups, text_groups);
  const ScalarType type = factor_type(image), sums = compute_type(image);
  const Tensor rows = prepared(image, type), cols = prepared(text, type);
  const int64_t images = image.size(0), texts = text.size(0);
  const bool with_max = text_groups.has_value();
  if (with_max) {
    image_groups = prepared(*image_groups, ScalarType::Long);
    text_groups = prepared(*text_groups, ScalarType::Long);
  }
  const auto vector = [&](int64_t size) { return like(rows, {size}, sums); };
  Lse out{vector(label_offset ? images : 0), vector(images), vector(texts), vector(with_max ? images : 0),
          vector(with_max ? texts : 0)};
  dispatch_factors(image, [&]<typename T, typename S>(T, S) {
    Forward<T, S>{matrix_of<const S>(rows),
                  matrix_of<const S>(cols),
                  T(value_of(logit_scale)),
                  first_pair(label_offset, text),
                  with_max ? data<int64_t>(*image_groups) : nullptr,
                  with_max ? data<int64_t>(*text_groups) : nullptr,
                  data<T>(std::get<0>(out)),
                  data<T>(std::get<1>(out)),
                  data<T>(std::get<2>(out)),
                  data<T>(std::get<3>(out)),
                  data<T>(std::get<4>(out))}
        .run();
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> contrastive_lse_backward(Tensor image, Tensor text, Tensor logit_scale,
                                                            std::optional<int64_t> label_offset,
                                                            Tensor image_lse, Tensor text_lse,
                                                            Tensor grad_positive, Tensor grad_image_lse,
                                                            Tensor grad_text_lse, bool needs_image,
                                                            bool needs_text, bool full_precision) {
  check_contrastive("contrastive_lse_backward", image, text, logit_scale, label_offset);
  check_vectors("contrastive_lse_backward", image, text, label_offset, image_lse, text_lse, grad_positive,
                grad_image_lse, grad_text_lse);
  const ScalarType type = factor_type(image), sums = compute_type(image);
  const Tensor rows = prepared(image, type), cols = prepared(text, type);
  const std::array<Tensor, 5> vectors{prepared(image_lse, sums), prepared(text_lse, sums),
                                      prepared(grad_image_lse, sums), prepared(grad_text_lse, sums),
                                      prepared(grad_positive, sums)};
  const Tensor grad_image = grad_of(image, needs_image), grad_text = grad_of(text, needs_text);
  const Tensor grad_scale = like(logit_scale, {}, ScalarType::Double);
  const int64_t first = first_pair(label_offset, text);
  dispatch_factors(image, [&]<typename T, typename S>(T, S) {
    const T scale = value_of(logit_scale);
    const Pull<T> pull{data<T>(vectors[0]), data<T>(vectors[1]), data<T>(vectors[2]), data<T>(vectors[3]),
                       data<T>(vectors[label_offset ? 4 : 2])};  // never read where there are no pairs
    const auto totals =
        sweep<1>(Towers<T, S>(rows, cols, grad_image, grad_text), [&](Matrix<T> tile, Range r, Range c) {
          return std::array{pull_tile<T>(tile.data, tile.rows, tile.cols, tile.row, r.begin + first - c.begin,
                                         scale,
                                         {pull.row_lse + r.begin, pull.col_lse + c.begin, pull.row + r.begin,
                                          pull.col + c.begin, pull.own + r.begin})};
        });
    *data<double>(grad_scale) = totals[0];
  });
  const ScalarType grads = full_precision ? sums : image.scalar_type();
  return {cast(grad_image, grads), cast(grad_text, grads), cast(grad_scale, logit_scale.scalar_type())};
}

}  // namespace cfmvit::contrastive

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  CFMVIT_IMPL(m, contrastive_lse, &cfmvit::contrastive::contrastive_lse);
  CFMVIT_IMPL(m, contrastive_lse_backward, &cfmvit::contrastive::contrastive_lse_backward);
}
