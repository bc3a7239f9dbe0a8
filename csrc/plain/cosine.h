// What all cosine losses share: the loss of a row and the factors of its gradient.
#pragma once

#include <cmath>

#include "plain/half.h"

namespace cfmvit {

// 1 - cos and the factors of its gradient: d loss / d pred = to_target * target + to_pred * pred.
template <typename Real>
struct Cosine {
  Real loss, to_target, to_pred;

  // products: pred.target, pred.pred, target.target
  CFMVIT_INLINE Cosine(const Real* products, double epsilon) {
    const Real pt = products[0], pp = products[1], tt = products[2], eps = static_cast<Real>(epsilon);
    const Real norm = std::sqrt(pp), bounded = above(norm, eps), target = above(std::sqrt(tt), eps);
    const Real cosine = pt / (bounded * target);
    loss = 1 - cosine;
    // A vector shorter than eps has a constant denominator; a zero vector gets no gradient at all.
    to_target = pp == 0 ? 0 : -1 / (bounded * target);
    to_pred = norm > eps ? cosine / pp : 0;
  }

 private:
  CFMVIT_INLINE static Real above(Real x, Real eps) { return x < eps ? eps : x; }  // NaN stays
};

}  // namespace cfmvit
