// The part of the LibTorch stable ABI that the CPU kernels use, under short names.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "plain/sizes.h"

// The headers of torch 2.11 and 2.12 lack it: an error's own text is known from 2.13 on.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace cfmvit {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Never null: an empty tensor has no memory, and loops over nothing still form pointers into it.
template <typename T>
T* data(const Tensor& x) {
  alignas(64) static char nothing[64];
  void* const found = x.data_ptr();
  return static_cast<T*>(found ? found : nothing);
}

// Uninitialised, on the device of x. All memory whose size is not that of an argument comes from here, or
// from filled(): both check the product of its sizes.
inline Tensor like(const Tensor& x, std::vector<int64_t> sizes,
                   std::optional<ScalarType> type = std::nullopt) {
  product(sizes);
  return torch::stable::new_empty(x, sizes, type);
}
template <typename T>
std::vector<T> filled(std::initializer_list<int64_t> sizes, T value) {
  return std::vector<T>(product(sizes), value);
}

// Asked first, because a call into PyTorch costs as much as a small op.
inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// The last dimension contiguous; other strides are left alone.
inline Tensor rows_of(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.stride(last) == 1 || x.size(last) <= 1 ? x : torch::stable::contiguous(x);
}

// The number in a 0-d tensor of the CPU.
inline double value_of(const Tensor& scalar) {
  if (scalar.scalar_type() == ScalarType::Float) return *data<float>(scalar);
  const bool wide = scalar.scalar_type() == ScalarType::Double;
  return *data<double>(wide ? scalar : torch::stable::to(scalar, ScalarType::Double));
}

// A 0-d tensor of float32 or float64.
inline Tensor scalar_like(const Tensor& x, double value, ScalarType type) {
  const Tensor out = like(x, {}, type);
  type == ScalarType::Double ? *data<double>(out) = value : *data<float>(out) = static_cast<float>(value);
  return out;
}

// Runs task(begin, end) for ranges that cover [0, tasks) over threads; `cost` is the work of one task in
// elements moved or added.
template <typename Task>
void parallel_ranges(int64_t tasks, int64_t cost, const Task& task) {
  constexpr int64_t kElementsPerThread = 16384;  // below that, waking a thread costs more than it saves
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(cost, 1));
  torch::stable::parallel_for(0, tasks, grain, task);
}

// Runs task(i) for i in [0, tasks) over threads.
template <typename Task>
void parallel(int64_t tasks, int64_t cost, const Task& task) {
  parallel_ranges(tasks, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

}  // namespace cfmvit
