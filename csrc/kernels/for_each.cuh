// Runs a body for each i in [0, count): on a GPU by a grid-stride loop, under a host compiler (the emulation
// in tests) one after another. Every output element is written by one call alone. Knows nothing of torch.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define CFMVIT_HD __host__ __device__
#else
#define CFMVIT_HD
#endif

namespace cfmvit::kernels {

#ifdef __CUDACC__
template <typename Body>
__global__ void __launch_bounds__(256) for_each_kernel(Body body, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) body(i);
}

template <typename Body>
void for_each(int64_t count, const Body& body, cudaStream_t stream) {
  if (count == 0) return;
  constexpr int64_t kThreads = 256, kMostBlocks = 1 << 20;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  for_each_kernel<<<static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks), kThreads, 0,
                    stream>>>(body, count);
}
#else
struct Host {};

template <typename Body>
void for_each(int64_t count, const Body& body, Host) {
  for (int64_t i = 0; i < count; ++i) body(i);
}
#endif

}  // namespace cfmvit::kernels
