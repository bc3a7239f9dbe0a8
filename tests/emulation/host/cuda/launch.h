// Stands in for csrc/cuda/launch.h: the device is the CPU, where a launch runs the kernel's threads as
// fibers.
#pragma once

#include "kernels/portable.cuh"
#include "torch/stable_abi.h"

namespace cfmvit {

template <typename Launch>
void on_device(const Tensor&, const Launch& launch) {
  launch(nullptr);
}

template <typename T>
Tensor workspace(const Tensor& x, std::vector<int64_t> sizes) {
  sizes.push_back(sizeof(T));
  return like(x, sizes, ScalarType::Byte);
}

}  // namespace cfmvit
