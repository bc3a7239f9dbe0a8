// The sigmoid contrastive loss on the CPU. A sigmoid needs no sums over rows first, so that loss and
// gradients come from one loop over the tiles of logits: three matrix products, or one where no gradient is
// wanted.
#include <tuple>

#include "cpu/contrastive_row_blocks.h"
#include "cpu/contrastive_tile.h"
#include "torch/contrastive_checks.h"
#include "torch/registration.h"

namespace cfmvit {
namespace {

using namespace contrastive;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sigmoid_loss_cpu(Tensor image, Tensor text,
                                                                    Tensor logit_scale, Tensor logit_bias,
                                                                    std::optional<int64_t> label_offset,
                                                                    bool needs_image, bool needs_text) {
  check_contrastive("sigmoid_loss", image, text, logit_scale, label_offset);
  CFMVIT_CHECK(logit_bias.dim() == 0, "sigmoid_loss: logit_bias must be 0-d, got ", logit_bias.dim(), "-d");
  const ScalarType type = factor_type(image), sums = compute_type(image);
  const Tensor rows = prepared(image, type), cols = prepared(text, type);
  const Tensor grad_image = grad_of(image, needs_image), grad_text = grad_of(text, needs_text);
  const int64_t first = first_pair(label_offset, text);
  std::array<double, 3> totals;
  dispatch_factors(image, [&]<typename T, typename S>(T, S) {
    const T scale = value_of(logit_scale), bias = value_of(logit_bias);
    totals = for_row_blocks<3>(Towers<T, S>(rows, cols, grad_image, grad_text), cols.size(0),
                               [&](Matrix<T> tile, Range r, Range c) {
                                 return sigmoid_tile<T>(tile.data, tile.rows, tile.cols, tile.row,
                                                        r.begin + first - c.begin, scale, bias);
                               });
  });
  const auto scalar = [&](double value) { return scalar_like(rows, value, sums); };
  return {scalar(totals[0]), grad_image, grad_text, scalar(totals[1]), scalar(totals[2])};
}

}  // namespace
}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) { CFMVIT_IMPL(m, sigmoid_loss, &cfmvit::sigmoid_loss_cpu); }
