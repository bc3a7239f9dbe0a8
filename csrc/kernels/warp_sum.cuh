// The sum of a value over a warp.
#pragma once

#include "kernels/portable.cuh"

namespace cfmvit::kernels {

// Sum over the lanes, the same bits in each.
template <typename Real>
__device__ __forceinline__ Real warp_sum(Real value) {
#pragma unroll
  for (int lane = 16; lane; lane /= 2) value += __shfl_xor_sync(kAllLanes, value, lane);
  return value;
}

}  // namespace cfmvit::kernels
