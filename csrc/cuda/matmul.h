// torch's own matrix products on a GPU, written into tensors that are there already.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include <array>

#include "torch/stable_abi.h"

namespace cfmvit {

// out = a b
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
}

// out = a b + row, added to each row before the sums are rounded
inline void multiply_plus(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& row) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), row.get(), a.get(), b.get(), 1.0, 1.0));
}

// out += a b
inline void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

// out, float32, = a b of 16-bit floats, without rounding to 16 bits in between.
inline void multiply_wide(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(ScalarType::Float), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // owns what the call returns
}

}  // namespace cfmvit
