// Matrix products in blocks: one thread per block, blocks spread over threads. The bits do not depend on the
// number of threads as long as the blocks do not.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>
#include <type_traits>

#include "cpu/capability.h"
#include "cpu/matmul.h"
#include "plain/half.h"
#include "torch/stable_abi.h"

namespace cfmvit::blocks {

template <typename T>
constexpr ScalarType kType = std::is_same_v<T, double>     ? ScalarType::Double
                             : std::is_same_v<T, BFloat16> ? ScalarType::BFloat16
                             : std::is_same_v<T, Half>     ? ScalarType::Half
                                                           : ScalarType::Float;

// A view made here carries no autograd state, so that any thread may use it.
template <typename T>
Tensor tensor_of(Matrix<T> x) {
  const std::array<int64_t, 2> sizes{x.rows, x.cols}, strides{x.row, x.col};
  auto* writable = const_cast<std::remove_const_t<T>*>(x.data);
  return torch::stable::from_blob(writable, sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  kType<std::remove_const_t<T>>);
}

// A contiguous tensor of two dimensions.
template <typename T>
Matrix<T> matrix_of(const Tensor& x) {
  return {static_cast<T*>(x.data_ptr()), x.size(0), x.size(1), x.size(1)};
}

// out = a b, or out += a b. bfloat16 factors of float32 sums: see products.h.
template <typename T, typename A, typename B>
void multiply(Matrix<T> out, Matrix<A> a, Matrix<B> b, bool accumulate = false) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr bool kNarrow = std::is_same_v<std::remove_const_t<B>, BFloat16>;
    if (kNarrow || kHasAvx512) return products::multiply(out, a, b, accumulate);
  }
  const Tensor result = tensor_of(out), left = tensor_of(a), right = tensor_of(b);
  if (accumulate) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), 1.0, 1.0));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), left.get(), right.get()));
  }
}

// Runs task(i) for i in [0, tasks); each multiplies and adds `products` times, in type T. BLAS is not called
// outside a parallel region, where it would split a product among threads and the bits would depend on their
// number.
template <typename T, typename Task>
void for_blocks(int64_t tasks, int64_t products, const Task& task) {
  constexpr int64_t kFew = 1 << 20;  // take less time than waking a thread
  const bool without_blas = std::is_same_v<T, float> && kHasAvx512;
  if (without_blas && tasks * products < kFew) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  torch::stable::parallel_for(0, std::max<int64_t>(tasks, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, tasks); ++i) task(i);
  });
}

}  // namespace cfmvit::blocks
