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
Tensor workspace(const Tensor& x, int64_t count) {
  return like(x, {count * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte);
}

}  // namespace cfmvit
