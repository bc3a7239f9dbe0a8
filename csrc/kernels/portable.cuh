// What a kernel may use: nvcc compiles it for a GPU, and g++ with -DCFMVIT_EMULATION runs the very same
// source on the CPU (tests/emulation; never in the product), where each CUDA thread is a fiber.
//
// A kernel is plain CUDA:
//
//   template <typename S>
//   __global__ void __launch_bounds__(256) sums_kernel(const S* x, acc_t<S>* out, int64_t count) {
//     __shared__ float of_warp[8];                 // static shared memory
//     float* more = dynamic_shared<float>();       // the launch's shared_bytes, 16-byte aligned
//     ... __syncthreads(), __shfl_xor_sync(kAllLanes, value, 16) ...
//   }
//   launch(sums_kernel<S>, grid, block, shared_bytes, stream, x, out, count);   // empty grids are no launch
//
// Under the emulation there are: threadIdx, blockIdx, blockDim, gridDim, warpSize, dim3, cudaStream_t (null);
// __global__, __device__, __host__, __forceinline__, __shared__, __launch_bounds__; __syncthreads,
// __syncwarp,
// __shfl_sync, _xor, _up, _down, __ballot_sync, __any_sync, __all_sync; __ldg, __stcs, __threadfence;
// atomicAdd, Or, And, Max, Min, Exch, CAS of integers (floats are refused: their sums would depend on the
// schedule); rsqrtf, rsqrt, __fdividef, __expf, __logf, __saturatef, __popc, __popcll, __ffs, __clz, min,
// max, and <cmath>. What else the device has (tensor cores, asynchronous copies) goes behind a function here,
// with a plain path. 16-bit floats are BFloat16 and Half of half.h.
//
// It aborts, with file and line, on a barrier that not every thread of the block reaches (stricter than the
// hardware: an exited thread counts as missing), on an exchange that the lanes of its mask do not all reach
// at the same place, and on launches or shared memory beyond what every supported GPU has (99 KB with the
// opt-in). Warps, lanes and blocks run in an order drawn from a seed, shared memory is poisoned before each
// block; ASan watches global and dynamic shared memory, UBSan alignment and the bounds of static arrays; a
// second run reports races, of two accesses in shared or global memory that no barrier orders (races.h).
//
// It does not see: blocks that wait for one another (they run one after another, a spin would hang), or that
// are ordered by fences; pointers that run past a static __shared__ array without its name; registers
// (tests/build holds those) and the block size of __launch_bounds__. nvcc contracts a * b + c, g++ is told
// not to: the last bits differ from a GPU's.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#elif defined(CFMVIT_EMULATION)
#include "emulation.h"
#else
#error "kernels are compiled by nvcc, or by g++ with CFMVIT_EMULATION"
#endif

namespace cfmvit::kernels {

constexpr unsigned kAllLanes = 0xffffffffu;

#ifdef __CUDACC__
template <typename T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char cfmvit_dynamic_shared[];
  return reinterpret_cast<T*>(cfmvit_dynamic_shared);
}

// The same pointer, but the compiler doesn't know how it came about.
template <typename T>
__device__ T* opaque(T* pointer) {
  asm("" : "+l"(pointer));
  return pointer;
}

// The check of the launch is the caller's (on_device).
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 * 1024) {  // beyond what every GPU gives unasked
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  kernel<<<grid, block, shared_bytes, stream>>>(args...);
}
#else
template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(emulation::shared_memory());
}

template <typename T>
T* opaque(T* pointer) {
  return pointer;
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            Args... args) {
  emulation::launch(grid, block, shared_bytes, [&] { kernel(args...); });
}
#endif

}  // namespace cfmvit::kernels
