// contrastive_lse and its backward on the CPU: matrix products in blocks (one thread each) with the
// passes of contrastive_tile.h in between. No more than a row block of the B x T logits exists at any time.
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

template <typename T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

template <typename T, typename S>
struct Forward {
  Matrix<const S> image, text;  // (B, D), (T, D)
  Scale<T> scale;
  int64_t label_offset;                     // T: no pairs
  const int64_t *image_group, *text_group;  // (B,), (T,), or null where the maxima are not wanted
  T *positive, *image_shift, *image_sum, *text_shift, *text_sum, *image_max, *text_max;

  struct Columns {  // what one row block knows of each text
    std::vector<T> max, sum, others;
  };

  void run() const {
    const int64_t step = forward_rows(image.rows), texts = text.rows;
    std::vector<Columns> row_blocks(ceil_div(image.rows, step));
    for_blocks<T>(row_blocks.size(), step * texts * text.cols, [&](int64_t i) {
      row_blocks[i] = {std::vector<T>(texts, kLowest<T>), std::vector<T>(texts),
                       std::vector<T>(text_group ? texts : 0, kLowest<T>)};
      add_row_block(block(i, step, image.rows), row_blocks[i]);
    });
    for (int64_t j = 0; j < texts; ++j) merge_column(j, row_blocks);
  }

  void add_row_block(Range rows, Columns& columns) const {
    const int64_t height = std::min(rows.size(), product_rows(image.rows));
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
        const int64_t own = band.begin + label_offset - j;
        for (int64_t r = std::max<int64_t>(0, -own); r < std::min(band.size(), cols.size() - own); ++r) {
          positive[band.begin + r] = tile[r * kCols + own + r];
        }
        add_tile<T>(tile.data(), band.size(), cols.size(), kCols, own, scale,
                    {max.data(), sum.data(), &columns.max[j], &columns.sum[j]}, scratch.data());
        if (text_group) {
          max_of_others<T>(tile.data(), band.size(), cols.size(), kCols, image_group + band.begin,
                           text_group + j, image_max + band.begin, &columns.others[j]);
        }
      }
      for (int64_t r = band.begin; r < band.end; ++r) {
        image_shift[r] = scale.sign * max[r - band.begin];
        image_sum[r] = sum[r - band.begin];
        if (text_group) image_max[r] *= scale.sign;
      }
    }
  }

  void merge_column(int64_t j, const std::vector<Columns>& row_blocks) const {
    T max = kLowest<T>, others = kLowest<T>;
    for (const Columns& columns : row_blocks) {
      max = std::max(max, columns.max[j]);
      if (text_group) others = std::max(others, columns.others[j]);
    }
    double sum = 0;
    for (const Columns& columns : row_blocks) {  // one without negatives has -inf and 0
      if (columns.sum[j] != 0) sum += columns.sum[j] * scale.exp_of(columns.max[j], max);
    }
    text_shift[j] = scale.sign * max;
    text_sum[j] = sum;
    if (text_group) text_max[j] = scale.sign * others;
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
  Lse out{vector(label_offset ? images : 0),
          vector(images),
          vector(images),
          vector(texts),
          vector(texts),
          vector(with_max ? images : 0),
          vector(with_max ? texts : 0)};
  dispatch_factors(image, [&]<typename T, typename S>(T, S) {
    Forward<T, S>{matrix_of<const S>(rows),
                  matrix_of<const S>(cols),
                  Scale<T>(value_of(logit_scale)),
                  first_pair(label_offset, text),
                  with_max ? data<int64_t>(*image_groups) : nullptr,
                  with_max ? data<int64_t>(*text_groups) : nullptr,
                  data<T>(std::get<0>(out)),
                  data<T>(std::get<1>(out)),
                  data<T>(std::get<2>(out)),
                  data<T>(std::get<3>(out)),
                  data<T>(std::get<4>(out)),
                  data<T>(std::get<5>(out)),
                  data<T>(std::get<6>(out))}
        .run();
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> contrastive_lse_backward(Tensor image, Tensor text, Tensor logit_scale,
                                                            std::optional<int64_t> label_offset,
                                                            Tensor image_shift, Tensor text_shift,
                                                            Tensor grad_positive, Tensor grad_image_sum,
                                                            Tensor grad_text_sum, bool needs_image,
                                                            bool needs_text, bool full_precision) {
  check_contrastive("contrastive_lse_backward", image, text, logit_scale, label_offset);
  check_vectors("contrastive_lse_backward", image, text, label_offset, image_shift, text_shift, grad_positive,
                grad_image_sum, grad_text_sum);
  const ScalarType type = factor_type(image), sums = compute_type(image);
  const Tensor rows = prepared(image, type), cols = prepared(text, type);
  const std::array<Tensor, 5> vectors{prepared(image_shift, sums), prepared(text_shift, sums),
                                      prepared(grad_image_sum, sums), prepared(grad_text_sum, sums),
                                      prepared(grad_positive, sums)};
  const Tensor grad_image = grad_of(image, needs_image), grad_text = grad_of(text, needs_text);
  const Tensor grad_scale = like(logit_scale, {}, ScalarType::Double);
  const int64_t first = first_pair(label_offset, text);
  dispatch_factors(image, [&]<typename T, typename S>(T, S) {
    const T scale = value_of(logit_scale);
    const GradOfSums<T> grads{data<T>(vectors[0]), data<T>(vectors[1]), data<T>(vectors[2]),
                              data<T>(vectors[3]),
                              data<T>(vectors[label_offset ? 4 : 2])};  // never read where there are no pairs
    const auto totals = for_row_blocks<1>(
        Towers<T, S>(rows, cols, grad_image, grad_text), first, [&](Matrix<T> tile, Range r, Range c) {
          return std::array{grad_tile<T>(tile.data, tile.rows, tile.cols, tile.row, r.begin + first - c.begin,
                                         scale,
                                         {grads.row_shift + r.begin, grads.col_shift + c.begin,
                                          grads.row + r.begin, grads.col + c.begin, grads.own + r.begin})};
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
