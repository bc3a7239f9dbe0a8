// Matrix products in blocks: views of matrices, BLAS on one thread per block, blocks spread over threads. The
// bits do not depend on the number of threads as long as the blocks do not.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>
#include <type_traits>

#include "half.h"
#include "stable.h"

namespace cfmvit::blocks {

template <typename T>
constexpr ScalarType kType = std::is_same_v<T, double>     ? ScalarType::Double
                             : std::is_same_v<T, BFloat16> ? ScalarType::BFloat16
                             : std::is_same_v<T, Half>     ? ScalarType::Half
                                                           : ScalarType::Float;

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The i-th of the blocks of `step` that cover [0, size).
inline Range block(int64_t i, int64_t step, int64_t size) {
  return {i * step, std::min((i + 1) * step, size)};
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
struct Matrix {  // a borrowed view, element (i, j) at data[i * row + j * col]
  T* data;
  int64_t rows, cols, row, col = 1;

  Matrix t() const { return {data, cols, rows, col, row}; }
  Matrix window(Range r, Range c) const {
    return {data + r.begin * row + c.begin * col, r.size(), c.size(), row, col};
  }
  Matrix window(Range r) const { return window(r, {0, cols}); }
  // A view made here carries no autograd state, so that any thread may use it.
  Tensor tensor() const {
    const std::array<int64_t, 2> sizes{rows, cols}, strides{row, col};
    auto* writable = const_cast<std::remove_const_t<T>*>(data);
    return torch::stable::from_blob(writable, sizes, strides,
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                    kType<std::remove_const_t<T>>);
  }
};

// A contiguous tensor of two dimensions.
template <typename T>
Matrix<T> matrix_of(const Tensor& x) {
  return {static_cast<T*>(x.data_ptr()), x.size(0), x.size(1), x.size(1)};
}

// out = a b, or out += a b.
template <typename T, typename A, typename B>
void multiply(Matrix<T> out, Matrix<A> a, Matrix<B> b, bool accumulate = false) {
  const Tensor result = out.tensor(), left = a.tensor(), right = b.tensor();
  if (accumulate) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), 1.0, 1.0));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), left.get(), right.get()));
  }
}

// Runs task(i) for i in [0, tasks). Never outside a parallel region, where BLAS would split a product among
// threads and the bits would depend on their number.
template <typename Task>
void for_blocks(int64_t tasks, const Task& task) {
  torch::stable::parallel_for(0, std::max<int64_t>(tasks, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, tasks); ++i) task(i);
  });
}

}  // namespace cfmvit::blocks
