// What the two cosine losses share: the loss of a row and the factors of its gradient, and the dtypes of the
// pairs.
#pragma once

#include <cmath>

#include "dispatch.h"
#include "views.h"

namespace cfmvit {

// 1 - cos and the factors of its gradient: d loss / d pred = to_target * target + to_pred * pred.
template <typename Real>
struct Cosine {
  Real loss, to_target, to_pred;

  // products: pred.target, pred.pred, target.target
  Cosine(const Real* products, double epsilon) {
    const Real pt = products[0], pp = products[1], tt = products[2], eps = static_cast<Real>(epsilon);
    const Real norm = std::sqrt(pp), bounded = std::max(norm, eps), target = std::max(std::sqrt(tt), eps);
    const Real cosine = pt / (bounded * target);
    loss = 1 - cosine;
    // A vector shorter than eps has a constant denominator; a zero vector gets no gradient at all.
    to_target = pp == 0 ? 0 : -1 / (bounded * target);
    to_pred = norm > eps ? cosine / pp : 0;
  }
};

// Calls run(S{}, T{}) with the types of pred and of target. A target is in pred's dtype or, as autocast makes
// it, one of the two is float32.
template <typename Run>
void dispatch_pair(const char* op, const Tensor& pred, const Tensor& target, const Run& run) {
  const ScalarType type = target.scalar_type();
  dispatch_floating(op, pred.scalar_type(), [&](auto p) {
    using S = decltype(p);
    if (type == pred.scalar_type()) return run(p, p);
    if constexpr (std::is_same_v<S, float>) {
      if (type == ScalarType::BFloat16) return run(p, BFloat16{});
      if (type == ScalarType::Half) return run(p, Half{});
    } else if constexpr (!std::is_same_v<S, double>) {
      if (type == ScalarType::Float) return run(p, float{});
    }
    STD_TORCH_CHECK(false, op, ": target must have pred's dtype or be float32, got ",
                    torch::headeronly::toString(type));
  });
}

}  // namespace cfmvit
