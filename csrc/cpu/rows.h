// Loops over rows of channels, compiled for each instruction set, and the choice among them.
#pragma once

#include "cpu/capability.h"
#include "plain/half.h"

namespace cfmvit::rows {

namespace baseline {
#include "cpu/rows.inc"
}  // namespace baseline

#ifdef CFMVIT_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "cpu/rows.inc"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {
#include "cpu/rows.inc"
}  // namespace avx512
#pragma GCC pop_options
#else
namespace avx2 = baseline;
namespace avx512 = baseline;
#endif

// CFMVIT_ROWS(add<S>)(out, in, added, n) runs the best variant of this machine.
#define CFMVIT_ROWS(...)                                      \
  (::cfmvit::kHasAvx512 ? ::cfmvit::rows::avx512::__VA_ARGS__ \
   : ::cfmvit::kHasAvx2 ? ::cfmvit::rows::avx2::__VA_ARGS__   \
                        : ::cfmvit::rows::baseline::__VA_ARGS__)

}  // namespace cfmvit::rows
