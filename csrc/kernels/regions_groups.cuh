// Boxes grouped by a small number, such as the map that they lie on: a stable counting sort, so that boxes of
// a group keep their order and everything that walks a group is the same on every run.
#pragma once

#include <algorithm>

#include "kernels/regions_tables.cuh"
#include "kernels/vectors.cuh"

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

// group (R,): of each box, or -1 for none. A block makes one group: it counts the boxes of those before, then
// writes its own; each warp looks at one stretch of the boxes, a lane at every 32nd.
static __global__ void __launch_bounds__(kGroupThreads, 4)
    group_kernel(const int32_t* of_box, int64_t boxes, Groups out) {
  constexpr int kWarps = kGroupThreads / 32;
  __shared__ int64_t below_of_warp[kWarps], mine_of_warp[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t stretch = (boxes + kGroupThreads - 1) / kGroupThreads * 32;
  const int64_t first = warp * stretch, end = min(first + stretch, boxes);
  for (int64_t group = blockIdx.x; group < out.count; group += gridDim.x) {
    int32_t below = 0, mine = 0;
#pragma unroll 8
    for (int64_t box = first + lane; box < end; box += 32) {
      const int32_t g = __ldg(of_box + box);
      below += g >= 0 && g < group;
      mine += g == group;
    }
    for (int step = 16; step > 0; step /= 2) {
      below += __shfl_xor_sync(kAllLanes, below, step);
      mine += __shfl_xor_sync(kAllLanes, mine, step);
    }
    if (lane == 0) {
      below_of_warp[warp] = below;
      mine_of_warp[warp] = mine;
    }
    __syncthreads();
    int64_t begin = 0, at = 0, all = 0;
    for (int w = 0; w < kWarps; ++w) {
      begin += below_of_warp[w];
      if (w < warp) at += mine_of_warp[w];
      all += mine_of_warp[w];
    }
    __syncthreads();  // before the arrays are written again
    at += begin;
    if (mine > 0) {  // the same for all lanes
#pragma unroll 4
      for (int64_t box = first; box < end; box += 32) {
        const bool is_mine = box + lane < end && __ldg(of_box + box + lane) == group;
        const unsigned found = __ballot_sync(kAllLanes, is_mine);
        if (is_mine) out.order[at + __popc(found & ((1u << lane) - 1))] = static_cast<int32_t>(box + lane);
        at += __popc(found);
      }
    }
    if (threadIdx.x == 0) {
      out.begin[group] = begin;
      if (group + 1 == out.count) out.begin[group + 1] = begin + all;
    }
  }
}

inline void make_groups(const int32_t* of_box, int64_t boxes, const Groups& out, cudaStream_t stream) {
  launch(group_kernel, static_cast<unsigned>(std::min(out.count, kMostBlocksYZ)), kGroupThreads, 0, stream,
         of_box, boxes, out);
}

constexpr int32_t kSorted = 4096;

// Puts the boxes of each group in the order of their keys, which are below 2^19, kSorted of them at a time,
// those of the same key as they were: a thread counts for its box those that come before it.
static __global__ void __launch_bounds__(kGroupThreads)
    sort_kernel(const int32_t* key, Groups groups, int32_t* sorted) {
  static_assert(kSorted % kGroupThreads == 0);
  __shared__ int32_t keys[kGroupThreads];
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int64_t group = blockIdx.x; group < groups.count; group += gridDim.x) {
    const int32_t* const order = groups.order + groups.begin[group];
    const auto count = static_cast<int32_t>(groups.begin[group + 1] - groups.begin[group]);
    for (int64_t first = int64_t{blockIdx.y} * kGroupThreads; first < count;
         first += int64_t{gridDim.y} * kGroupThreads) {
      const auto mine = static_cast<int32_t>(first) + thread,
                 start = static_cast<int32_t>(first) / kSorted * kSorted;
      const int32_t box = mine < count ? order[mine] : 0;
      const int32_t own = mine < count ? key[box] * kSorted + mine - start : 0;
      int32_t rank = start;
      for (int32_t begin = start; begin < min(start + kSorted, count); begin += kGroupThreads) {
        __syncthreads();
        const int32_t other = min(begin + thread, count - 1);
        keys[thread] = begin + thread < count ? key[order[other]] * kSorted + other - start : INT32_MAX;
        __syncthreads();
#pragma unroll 16
        for (int j = 0; j < kGroupThreads; ++j) rank += keys[j] < own;
      }
      if (mine < count) sorted[groups.begin[group] + rank] = box;
    }
  }
}

inline void sort_groups(const int32_t* key, const Groups& groups, int64_t boxes, int32_t* sorted,
                        cudaStream_t stream) {
  // As many blocks as boxes need where groups are alike.
  const int64_t each = ceil_div(boxes, std::max<int64_t>(groups.count, 1));
  const dim3 grid(static_cast<unsigned>(std::min(groups.count, kMostBlocksYZ)),
                  static_cast<unsigned>(std::min(ceil_div(each, kGroupThreads), kMostBlocksYZ)));
  launch(sort_kernel, grid, kGroupThreads, 0, stream, key, groups, sorted);
}

}  // namespace cfmvit::kernels
