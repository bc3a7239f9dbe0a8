// From a tensor's dtype to a C++ type.
#pragma once

#include "half.h"
#include "stable.h"

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

}  // namespace cfmvit
