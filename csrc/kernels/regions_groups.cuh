// Boxes grouped by a small number, such as the map that they lie on: a stable counting sort, so that boxes of
// a group keep their order and everything that walks a group is the same on every run.
#pragma once

#include <algorithm>

#include "kernels/regions_tables.cuh"

namespace cfmvit::kernels {

struct Groups {
  int32_t* order;  // (R,) boxes, group by group
  int64_t* begin;  // (G + 1,) where each group begins in `order`
  int64_t count;   // G
};

inline Groups groups_of(Workspace& workspace, int64_t boxes, int64_t count) {
  return {workspace.take<int32_t>(boxes), workspace.take<int64_t>(count + 1), count};
}

constexpr int kGroupThreads = 256;

// Sum of `value` over the threads before this one; `total` is that of all. Ends with a barrier before the
// shared array may be written again.
__device__ inline int64_t sum_before(int64_t value, int64_t& total) {
  __shared__ int64_t of_warp[kGroupThreads / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int64_t sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const int64_t other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  int64_t before = 0;
  total = 0;
  for (int w = 0; w < kGroupThreads / 32; ++w) {
    if (w < warp) before += of_warp[w];
    total += of_warp[w];
  }
  __syncthreads();
  return before + sum - value;
}

// group (R,): of each box, or -1 for none. A block makes one group: it counts the boxes of those before, then
// writes its own; each thread looks at one stretch of the boxes.
template <typename Key>
__global__ void __launch_bounds__(kGroupThreads, 4)
    group_kernel(const Key* of_box, int64_t boxes, Groups out) {
  const int64_t stretch = (boxes + kGroupThreads - 1) / kGroupThreads;
  const int64_t first = threadIdx.x * stretch, end = min(first + stretch, boxes);
  for (int64_t group = blockIdx.x; group < out.count; group += gridDim.x) {
    int64_t below = 0, mine = 0, all_below = 0, all = 0;
#pragma unroll 8
    for (int64_t box = first; box < end; ++box) {
      const Key g = __ldg(of_box + box);
      below += g >= 0 && g < group;
      mine += g == group;
    }
    sum_before(below, all_below);
    int64_t at = sum_before(mine, all) + all_below;
#pragma unroll 8
    for (int64_t box = first; box < end; ++box) {
      if (__ldg(of_box + box) == group) out.order[at++] = static_cast<int32_t>(box);
    }
    if (threadIdx.x == 0) {
      out.begin[group] = all_below;
      if (group + 1 == out.count) out.begin[group + 1] = all_below + all;
    }
  }
}

inline void make_groups(const int32_t* of_box, int64_t boxes, const Groups& out, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 65535;
  launch(group_kernel<int32_t>, static_cast<unsigned>(std::min(out.count, kMostBlocks)), kGroupThreads, 0,
         stream, of_box, boxes, out);
}

}  // namespace cfmvit::kernels
