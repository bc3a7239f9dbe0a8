// contrastive_lse and its backward on the CPU: matrix products in blocks (BLAS, one thread each) with the
// passes of contrastive_tile.h in between. No more than a strip of the B x T logits exists at any time.
//
// Deterministic for any number of threads: blocks depend on the sizes alone, a block's product runs on one
// thread, every sum has one owner and a fixed order.
#include <array>
#include <cmath>
#include <tuple>

#include "../contrastive_checks.h"
#include "blocks.h"
#include "contrastive_tile.h"

namespace cfmvit {
namespace {

using namespace blocks;

constexpr int64_t kCols = 512;      // texts of a tile: 128 x 512 float32 stay in a core's L2
constexpr int64_t kGradCols = 512;  // texts of a block of the backward, which also owns their gradient
constexpr int64_t kStripBytes = int64_t{1} << 26;  // bound of the backward's workspace

// Rows of a strip of the forward: column sums exist once per strip, so that there are at most 64 of them.
int64_t forward_strip(int64_t images) {
  const int64_t least = images >= 2048 ? 128 : 32;
  return images > 64 * least ? ceil_div(images, 64 * 128) * 128 : least;
}

// Rows of a strip of the backward: about 3 % of the logits, within kStripBytes.
int64_t backward_strip(int64_t images, int64_t texts, int64_t item_size) {
  const int64_t most = std::max<int64_t>(kStripBytes / (texts * item_size), 32);
  return std::min(std::clamp<int64_t>(images / 32, 128, 1024), most) / 32 * 32;
}

template <typename T>
double dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t kSums = 8;
  std::array<double, kSums> sums{};
  for (int64_t k = 0; k < n; k += kSums) {
    for (int64_t l = 0; l < std::min(kSums, n - k); ++l) sums[l] += double(a[k + l]) * b[k + l];
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

template <typename T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

template <typename T>
struct Forward {
  Matrix<const T> image, text;  // (B, D), (T, D)
  T scale;
  int64_t label_offset;
  const int64_t* group;  // (T,), or null where the maxima are not wanted
  T *positive, *image_lse, *text_lse, *image_max, *text_max;

  struct Columns {  // what one strip of images knows of each text
    std::vector<T> max, sum, others;
  };

  void run() const {
    const int64_t step = forward_strip(image.rows), texts = text.rows;
    std::vector<Columns> strips(ceil_div(image.rows, step));
    for_blocks(strips.size(), [&](int64_t i) {
      strips[i] = {std::vector<T>(texts, kLowest<T>), std::vector<T>(texts),
                   std::vector<T>(group ? texts : 0, kLowest<T>)};
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
      if (group) std::fill(image_max + band.begin, image_max + band.end, kLowest<T>);
      for (int64_t j = 0; j < text.rows; j += kCols) {
        const Range cols{j, std::min(j + kCols, text.rows)};
        multiply(Matrix<T>{tile.data(), band.size(), cols.size(), kCols}, image.window(band),
                 text.window(cols).t());
        contrastive::add_tile<T>(tile.data(), band.size(), cols.size(), kCols, band.begin + label_offset - j,
                                 scale, {max.data(), sum.data(), &columns.max[j], &columns.sum[j]},
                                 scratch.data());
        if (group) {
          contrastive::max_of_others<T>(tile.data(), band.size(), cols.size(), kCols,
                                        group + band.begin + label_offset, group + j, image_max + band.begin,
                                        &columns.others[j]);
        }
      }
      for (int64_t r = band.begin; r < band.end; ++r) {
        image_lse[r] = max[r - band.begin] + std::log(sum[r - band.begin]);
        positive[r] =
            scale * dot(image.data + r * image.row, text.data + (r + label_offset) * text.row, image.cols);
      }
    }
  }

  void merge_column(int64_t j, const std::vector<Columns>& strips) const {
    T max = kLowest<T>, others = kLowest<T>;
    for (const Columns& strip : strips) {
      max = std::max(max, strip.max[j]);
      if (group) others = std::max(others, strip.others[j]);
    }
    double sum = 0;
    for (const Columns& strip : strips) {  // a strip without negatives has -inf and 0
      if (strip.sum[j] != 0) sum += strip.sum[j] * std::exp(double(strip.max[j]) - double(max));
    }
    text_lse[j] = max + std::log(sum);
    if (group) text_max[j] = others;
  }
};

template <typename T>
struct Backward {
  Matrix<const T> image, text;
  T scale;
  int64_t label_offset;
  contrastive::Pull<T> pull;
  Matrix<T> grad_image, grad_text;  // data null where not wanted

  // Returns the gradient of the scale.
  double run() const {
    const int64_t texts = text.rows, step = backward_strip(image.rows, texts, sizeof(T));
    const int64_t stride = texts + 16;  // a power of two would put a column of the strip into few cache sets
    const int64_t blocks = ceil_div(texts, kGradCols);
    std::vector<T> strip(std::min(step, image.rows) * stride);
    std::vector<double> grad_scale(blocks);
    for (int64_t top = 0; top < image.rows; top += step) {
      const Range rows{top, std::min(top + step, image.rows)};
      const Matrix<T> logits{strip.data(), rows.size(), texts, stride};
      for_blocks(blocks,
                 [&](int64_t j) { grad_scale[j] += pull_block(rows, block(j, kGradCols, texts), logits); });
      if (grad_image.data) product_with_text(rows, logits);
    }
    double total = 0;
    for (const double part : grad_scale) total += part;
    return total;
  }

  double pull_block(Range rows, Range cols, Matrix<T> logits) const {
    const Matrix<T> tile = logits.window({0, rows.size()}, cols);
    multiply(tile, image.window(rows), text.window(cols).t());
    const double grad_scale = contrastive::pull_tile<T>(
        tile.data, tile.rows, tile.cols, tile.row, rows.begin + label_offset - cols.begin, scale,
        {pull.row_lse + rows.begin, pull.col_lse + cols.begin, pull.row + rows.begin, pull.col + cols.begin,
         pull.own + rows.begin});
    if (grad_text.data) multiply(grad_text.window(cols), tile.t(), image.window(rows), rows.begin > 0);
    return grad_scale;
  }

  void product_with_text(Range rows, Matrix<T> logits) const {
    constexpr int64_t kRows = 128, kWidth = 128;
    const int64_t across = ceil_div(text.cols, kWidth);
    for_blocks(ceil_div(rows.size(), kRows) * across, [&](int64_t i) {
      const Range part = block(i / across, kRows, rows.size()), width = block(i % across, kWidth, text.cols);
      const Matrix<T> out = grad_image.window(rows).window(part, width);
      multiply(out, logits.window(part), text.window({0, text.rows}, width));
    });
  }
};

// Row-major, in float32 or (for float64 features) float64.
Tensor prepared(const Tensor& x, ScalarType type) {
  return torch::stable::contiguous(x.scalar_type() == type ? x : torch::stable::to(x, type));
}

ScalarType compute_type(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

double value_of(const Tensor& scalar) {
  return *prepared(scalar, ScalarType::Double).const_data_ptr<double>();
}

using Lse = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Lse contrastive_lse_cpu(Tensor image, Tensor text, Tensor logit_scale, int64_t label_offset,
                        std::optional<Tensor> group_ids) {
  check_contrastive_lse(image, text, logit_scale, label_offset, group_ids);
  const ScalarType type = compute_type(image);
  const Tensor rows = prepared(image, type), cols = prepared(text, type);
  const int64_t images = image.size(0), texts = text.size(0);
  std::optional<Tensor> group;
  if (group_ids) group = prepared(*group_ids, ScalarType::Long);
  Lse out{like(rows, {images}), like(rows, {images}), like(rows, {texts}), like(rows, {group ? images : 0}),
          like(rows, {group ? texts : 0})};
  const auto run = [&]<typename T>(T) {
    Forward<T>{matrix_of<const T>(rows),
               matrix_of<const T>(cols),
               T(value_of(logit_scale)),
               label_offset,
               group ? data<int64_t>(*group) : nullptr,
               data<T>(std::get<0>(out)),
               data<T>(std::get<1>(out)),
               data<T>(std::get<2>(out)),
               data<T>(std::get<3>(out)),
               data<T>(std::get<4>(out))}
        .run();
  };
  type == ScalarType::Double ? run(double{}) : run(float{});
  return out;
}

std::tuple<Tensor, Tensor, Tensor> contrastive_lse_backward_cpu(Tensor image, Tensor text, Tensor logit_scale,
                                                                int64_t label_offset, Tensor image_lse,
                                                                Tensor text_lse, Tensor grad_positive,
                                                                Tensor grad_image_lse, Tensor grad_text_lse,
                                                                bool needs_image, bool needs_text) {
  check_contrastive_lse(image, text, logit_scale, label_offset, std::nullopt);
  for (const auto& [rows, count] : {std::pair{&image_lse, image.size(0)},
                                    {&grad_image_lse, image.size(0)},
                                    {&grad_positive, image.size(0)},
                                    {&text_lse, text.size(0)},
                                    {&grad_text_lse, text.size(0)}}) {
    CFMVIT_CHECK(rows->dim() == 1 && rows->size(0) == count,
                 "contrastive_lse_backward: log-sum-exps and gradients ", "must have one entry per row, got ",
                 rows->numel(), " for ", count);
  }
  const ScalarType type = compute_type(image);
  const Tensor rows = prepared(image, type), cols = prepared(text, type);
  const std::array<Tensor, 5> vectors{prepared(image_lse, type), prepared(text_lse, type),
                                      prepared(grad_image_lse, type), prepared(grad_text_lse, type),
                                      prepared(grad_positive, type)};
  const auto grad_of = [](const Tensor& x, bool needed) {
    return needed ? like(x, {x.size(0), x.size(1)}) : like(x, {0, 0});
  };
  const Tensor grad_image = grad_of(rows, needs_image), grad_text = grad_of(cols, needs_text);
  const Tensor grad_scale = like(logit_scale, {}, ScalarType::Double);
  const auto run = [&]<typename T>(T) {
    *data<double>(grad_scale) = Backward<T>{
        matrix_of<const T>(rows),
        matrix_of<const T>(cols),
        T(value_of(logit_scale)),
        label_offset,
        {data<T>(vectors[0]), data<T>(vectors[1]), data<T>(vectors[2]), data<T>(vectors[3]),
         data<T>(vectors[4])},
        {needs_image ? data<T>(grad_image) : nullptr, rows.size(0), rows.size(1), rows.size(1)},
        {needs_text ? data<T>(grad_text) : nullptr, cols.size(0), cols.size(1),
         cols.size(1)}}.run();
  };
  type == ScalarType::Double ? run(double{}) : run(float{});
  const auto cast = [](const Tensor& x, const Tensor& to) {
    return x.scalar_type() == to.scalar_type() ? x : torch::stable::to(x, to.scalar_type());
  };
  return {cast(grad_image, image), cast(grad_text, text), cast(grad_scale, logit_scale)};
}

}  // namespace
}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  m.impl("contrastive_lse", TORCH_BOX(&cfmvit::contrastive_lse_cpu));
  m.impl("contrastive_lse_backward", TORCH_BOX(&cfmvit::contrastive_lse_backward_cpu));
}
