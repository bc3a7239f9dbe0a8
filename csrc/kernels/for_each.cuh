// Runs a body for each i in [0, count), a thread each or a warp each. Every output element is written by one
// call alone.
#pragma once

#include "kernels/portable.cuh"

namespace cfmvit::kernels {

template <typename Body>
__global__ void __launch_bounds__(256) for_each_kernel(Body body, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) body(i);
}

template <typename Body>
void for_each(int64_t count, const Body& body, cudaStream_t stream) {
  constexpr int64_t kThreads = 256, kMostBlocks = 1 << 20;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  launch(for_each_kernel<Body>, static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks), kThreads,
         0, stream, body, count);
}

// A warp each, without a loop around it, for its state would be spilled at the calls of the square root.
// count < 2**34.
template <typename Body>
__global__ void __launch_bounds__(256) for_each_warp_kernel(Body body, int64_t count) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x / 32} + threadIdx.x / 32;
  if (i < count) body(i);
}
template <typename Body>
void for_each_warp(int64_t count, const Body& body, cudaStream_t stream) {
  launch(for_each_warp_kernel<Body>, static_cast<unsigned>((count + 7) / 8), 256, 0, stream, body, count);
}

}  // namespace cfmvit::kernels
