// The inverse of an index (B, K): which entries name each of N tokens, so that a backward has one owner for
// each token. Integer minima and maxima do not depend on the order of the threads.
#pragma once

#include "kernels/vectors.cuh"
#include "plain/index.h"

namespace cfmvit::kernels {

struct InverseEntries {
  int32_t first, last;  // the least and the greatest entry; last < 0 where there is none
};

// Entries are numbered through two indices, the second after the first; it may have no entries.
struct Sources {
  Index index[2];
  int64_t entries[2];

  CFMVIT_INLINE int64_t operator()(int64_t b, int64_t entry) const {
    return entry < entries[0] ? index[0](b, entry) : index[1](b, entry - entries[0]);
  }
  CFMVIT_INLINE int64_t total() const { return entries[0] + entries[1]; }

  // The entry after `entry`, which is not the last, that names token n. A sound index names each token
  // once at most, so this loop is not reached.
  CFMVIT_INLINE int32_t next(int64_t b, int32_t entry, int64_t n) const {
    do ++entry;
    while ((*this)(b, entry) != n);
    return entry;
  }
};

inline Sources one_source(Index index, int64_t entries) { return {{index, index}, {entries, 0}}; }

// inverse: (B, N). One block per sample; entries out of range name nothing.
template <int kBlock>
__global__ void __launch_bounds__(kBlock)
    invert_kernel(Sources sources, InverseEntries* inverse, int64_t num_tokens) {
  const int64_t b = blockIdx.x;
  InverseEntries* row = inverse + b * num_tokens;
  for (int64_t n = threadIdx.x; n < num_tokens; n += kBlock) row[n] = {INT32_MAX, -1};
  __syncthreads();
  for (int64_t e = threadIdx.x; e < sources.total(); e += kBlock) {
    const int64_t n = sources(b, e);
    if (n < 0 || n >= num_tokens) continue;
    atomicMin(&row[n].first, static_cast<int32_t>(e));
    atomicMax(&row[n].last, static_cast<int32_t>(e));
  }
}

inline void invert(const Sources& sources, InverseEntries* inverse, int64_t batch, int64_t num_tokens,
                   cudaStream_t stream) {
  if (batch * num_tokens == 0) return;
  launch(invert_kernel<kThreads>, grid_size(batch), dim3(kThreads), 0, stream, sources, inverse, num_tokens);
}

}  // namespace cfmvit::kernels
