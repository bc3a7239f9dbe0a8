// Kernels with planted faults: what the emulation must catch.
#include "cases.h"
#include "kernels/masking.cuh"

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
  kReadsAnotherBlock,
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
  if (fault == kReadsAnotherBlock) sum += 0 * out[(blockIdx.x + 1) % gridDim.x];
  out[blockIdx.x] = sum;
}

KERNEL(block_sums) {
  const int64_t blocks = job.integer("blocks"), threads = job["in"].size(0) / blocks;
  kernels::launch(block_sums, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                  sizeof(float) * threads, nullptr, job.data<float>("in"), job.output<float>("out", {blocks}),
                  job.integer("fault"));
}

// What each lane takes from the others, by every exchange: out[which * count + thread].
__global__ void exchanges(int* out) {
  __shared__ int words[64];
  const int lane = static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y) % 32,
            count = static_cast<int>(blockDim.x * blockDim.y);
  const int thread = static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y), value = 100 + thread;
  int which = 0;
  const auto put = [&](int taken) { out[which++ * count + thread] = taken; };
  put(__shfl_sync(kernels::kAllLanes, value, 5));
  put(__shfl_sync(kernels::kAllLanes, value, lane + 1, 8));
  put(__shfl_xor_sync(kernels::kAllLanes, value, 3));
  put(__shfl_xor_sync(kernels::kAllLanes, value, 8, 8));
  put(__shfl_down_sync(kernels::kAllLanes, value, 30));
  put(__shfl_up_sync(kernels::kAllLanes, value, 2, 4));
  put(static_cast<int>(__ballot_sync(kernels::kAllLanes, lane % 3 == 0)));
  put(__any_sync(kernels::kAllLanes, lane == 40) * 2 + __all_sync(kernels::kAllLanes, lane < 32));
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  put(lane < 16 ? __shfl_xor_sync(half, value, 15) : __shfl_sync(half, value, 31));
  words[thread] = value;
  __syncwarp();
  put(words[thread ^ 31]);
}

KERNEL(exchanges) {
  kernels::launch(exchanges, 1, dim3(16, 4), 0, nullptr, job.output<int>("out", {10, 64}));
}

__global__ void nothing() {}

KERNEL(launches) {
  const int64_t* size = job["size"].data<const int64_t>();  // grid, block, shared bytes
  const auto word = [&](int i) { return static_cast<unsigned>(size[i]); };
  kernels::launch(nothing, dim3(word(0), word(1), word(2)), dim3(word(3), word(4), word(5)), word(6),
                  nullptr);
}

KERNEL(grids) {
  const int64_t* size = job["size"].data<const int64_t>();
  kernels::launch(nothing, kernels::grid_size(size[0], size[1], size[2]), 1, 0, nullptr);
}

KERNEL(samples_per_partial) {
  const int64_t* shapes = job["shapes"].data<const int64_t>();  // batch, tokens, width
  const int64_t count = job["shapes"].size(0);
  int64_t* out = job.output<int64_t>("out", {count});
  for (int64_t i = 0; i < count; ++i) {
    out[i] = kernels::samples_per_partial(shapes[3 * i], shapes[3 * i + 1], shapes[3 * i + 2]);
  }
}

KERNEL(column_sums) {
  const int64_t rows = job["in"].size(0), columns = job["in"].size(1), each = job.integer("each");
  kernels::column_sums(job.data<float>("in"), columns,
                       job.output<float>("out", {kernels::ceil_div(rows, each), columns}), rows, each,
                       columns, nullptr);
}

}  // namespace cfmvit::emulation
