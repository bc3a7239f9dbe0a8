// The launcher of the losses' kernel of both cosine losses, for the dtypes of pred and target that
// dispatch_pair knows: reconstruction.cu compiles it, reconstruction_linear.cu uses it.
#pragma once

#include "kernels/reconstruction.cuh"

#define CFMVIT_COSINE_PAIR(prefix, S, T)                                                          \
  prefix template void cfmvit::kernels::cosine_losses(const cfmvit::kernels::CosineLosses<S, T>&, \
                                                      cudaStream_t);

#define CFMVIT_COSINE_PAIRS(prefix)                              \
  CFMVIT_COSINE_PAIR(prefix, float, float)                       \
  CFMVIT_COSINE_PAIR(prefix, double, double)                     \
  CFMVIT_COSINE_PAIR(prefix, cfmvit::BFloat16, cfmvit::BFloat16) \
  CFMVIT_COSINE_PAIR(prefix, cfmvit::Half, cfmvit::Half)         \
  CFMVIT_COSINE_PAIR(prefix, float, cfmvit::BFloat16)            \
  CFMVIT_COSINE_PAIR(prefix, float, cfmvit::Half)                \
  CFMVIT_COSINE_PAIR(prefix, cfmvit::BFloat16, float)            \
  CFMVIT_COSINE_PAIR(prefix, cfmvit::Half, float)
