// Kernels with planted faults: what the emulation must catch.
#include "cases.h"
#include "kernels/portable.cuh"

namespace cfmvit::emulation {

enum Fault {
  kNone,
  kReadsBeyond,
  kSharedBeyond,
  kStaticBeyond,
  kMissedBarrier,
  kExitedBeforeBarrier,
  kDivergentExchange,
  kLaneNotInMask,
  kUnwritten,
  kRace,
  kNoBarrier,
  kNothingInShared,
  kMisaligned,
};

// out[block] = sum of in[block * blockDim.x + t] over the threads t, by shuffles, static and dynamic shared
// memory.
__global__ void block_sums(const float* in, float* out, int64_t fault) {
  __shared__ float of_warp[32];
  float* all = kernels::dynamic_shared<float>();
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  all[t] = in[int64_t{blockIdx.x} * threads + t + (fault == kReadsBeyond)];
  if (fault == kSharedBeyond) all[threads + t] = 0;
  if (fault == kStaticBeyond) of_warp[threads] = 0;
  if (fault == kMisaligned) *reinterpret_cast<double*>(all + 1) = 0;
  if (fault == kExitedBeforeBarrier && t == threads - 1) return;
  if (fault != kNoBarrier && !(fault == kMissedBarrier && t == threads - 1)) __syncthreads();
  float sum = all[threads - 1 - t];
  if (fault == kDivergentExchange && t % 2) {
    sum += __shfl_xor_sync(kernels::kAllLanes, sum, 1);
  } else {
    sum += __shfl_xor_sync(kernels::kAllLanes, sum, 1);
  }
  for (int step = 2; step < 32; step *= 2) {
    sum += __shfl_xor_sync(fault == kLaneNotInMask ? 1u << t % 32 : kernels::kAllLanes, sum, step);
  }
  if (t % 32 == 0 && fault != kNothingInShared) of_warp[t / 32] = sum;
  __syncthreads();
  if (fault == kRace) out[blockIdx.x] = static_cast<float>(t);
  if (fault == kRace || t != 0 || (fault == kUnwritten && blockIdx.x == 1)) return;
  sum = 0;
  for (int w = 0; w < threads / 32; ++w) sum += of_warp[w];
  out[blockIdx.x] = sum;
}

KERNEL(block_sums) {
  const int64_t blocks = job.integer("blocks"), threads = job["in"].size(0) / blocks;
  kernels::launch(block_sums, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                  sizeof(float) * threads, nullptr, job.data<float>("in"), job.output<float>("out", {blocks}),
                  job.integer("fault"));
}

}  // namespace cfmvit::emulation
