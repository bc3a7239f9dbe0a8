// Stands in for csrc/cuda/matmul.h by the CPU's matrix products.
#pragma once

#include "cpu/matmul_blocks.h"

namespace cfmvit {

// On one thread, so that the bits do not depend on their number.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  blocks::for_blocks<double>(1, 0, [&](int64_t) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  });
}

inline void multiply_plus(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& row) {
  blocks::for_blocks<double>(1, 0, [&](int64_t) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), row.get(), a.get(), b.get(), 1.0, 1.0));
  });
}

inline void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b) {
  blocks::for_blocks<double>(1, 0, [&](int64_t) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
  });
}

inline void multiply_wide(const Tensor& out, const Tensor& a, const Tensor& b) {
  const auto wide = [](const Tensor& x) {
    Tensor copy = like(x, {x.size(0), x.size(1)}, ScalarType::Float);
    return torch::stable::copy_(copy, x);
  };
  multiply(out, wide(a), wide(b));
}

}  // namespace cfmvit
