// What every CUDA op does around its launcher: the tensor's device, its current stream, the check after the
// launch.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "torch/stable_abi.h"

namespace cfmvit {

// Calls launch(stream) on the device of `x`.
template <typename Launch>
void on_device(const Tensor& x, const Launch& launch) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  launch(static_cast<cudaStream_t>(stream));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Uninitialised room for T of these sizes on the device of `x`.
template <typename T>
Tensor workspace(const Tensor& x, std::vector<int64_t> sizes) {
  sizes.push_back(sizeof(T));
  return like(x, sizes, ScalarType::Byte);
}

}  // namespace cfmvit
