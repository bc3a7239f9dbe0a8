// From a tensor's dtype to a C++ type.
#pragma once

#include "plain/half.h"
#include "torch/stable_abi.h"

namespace cfmvit {

// Calls run(S{}) with the storage type of a floating dtype.
template <typename Run>
void dispatch_floating(const char* op, ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::Double:
      return run(double{});
    case ScalarType::BFloat16:
      return run(BFloat16{});
    case ScalarType::Half:
      return run(Half{});
    default:
      STD_TORCH_CHECK(false, op, ": features must be float32, float64, bfloat16 or float16");
  }
}

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
