// Drawing masks: the rank of each token's noise, as a stable argsort ranks them. B samples, N tokens, K kept.
#pragma once

#include "kernels/vectors.cuh"
#include "plain/noise_order.h"

namespace cfmvit::kernels {

// Each thread counts the keys before its own, kThreads at a time in shared memory; a whole row, as a rule, is
// one block and one round. A token's rank is its position in keep followed by masked.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    random_masking_kernel(const S* noise, int64_t sample, int64_t column, int64_t* keep, int64_t* masked,
                          int64_t* restore, int64_t count, int64_t kept, int64_t tiles) {
  using Key = decltype(ordered(to_acc(S{})));
  __shared__ Key keys[kThreads];
  const int64_t b = blockIdx.x / tiles, start = blockIdx.x % tiles * kThreads, token = start + threadIdx.x;
  const S* row = noise + b * sample;
  const Key own = token < count ? ordered(to_acc(row[token * column])) : Key(0);
  int64_t rank = 0;
  for (int64_t first = 0; first < count; first += kThreads) {
    const int64_t other = first + threadIdx.x;
    __syncthreads();  // the last round's keys have been read
    keys[threadIdx.x] = other == token ? own : other < count ? ordered(to_acc(row[other * column])) : Key(0);
    __syncthreads();
    const int size = count - first < kThreads ? static_cast<int>(count - first) : kThreads;
    // Equal keys count where their token comes first: all of an earlier round, none of a later one, and in
    // this block's own those of earlier warps and of lower lanes.
    const int warp = static_cast<int>(threadIdx.x) / kLanes * kLanes;
    const int earlier = first < start ? size : first > start ? 0 : warp;
    const int mixed = first != start ? earlier : warp + kLanes < size ? warp + kLanes : size;
    int i = 0, below = 0;
#pragma unroll 8
    for (; i < earlier; ++i) below += keys[i] <= own;
#pragma unroll 8
    for (; i < mixed; ++i) below += keys[i] < own || (keys[i] == own && i < static_cast<int>(threadIdx.x));
#pragma unroll 8
    for (; i < size; ++i) below += keys[i] < own;
    rank += below;
  }
  if (token >= count) return;
  restore[b * count + token] = rank;
  (rank < kept ? keep[b * kept + rank] : masked[b * (count - kept) + rank - kept]) = token;
}

// noise (B, N) of any strides
template <typename S>
void random_masking(const S* noise, int64_t sample, int64_t column, int64_t* keep, int64_t* masked,
                    int64_t* restore, int64_t batch, int64_t count, int64_t kept, cudaStream_t stream) {
  if (batch * count == 0) return;
  const int64_t tiles = ceil_div(count, kThreads);
  launch(random_masking_kernel<S>, grid_size(batch * tiles), dim3(kThreads), 0, stream, noise, sample, column,
         keep, masked, restore, count, kept, tiles);
}

}  // namespace cfmvit::kernels
