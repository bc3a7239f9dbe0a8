// Tile passes of the contrastive loss, compiled for the instruction sets they gain from, and the choice
// between them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/capability.h"
#include "plain/half.h"

#define CFMVIT_INLINE inline __attribute__((always_inline))

namespace cfmvit::contrastive {

// How similarities become logits. Exponents are |scale| * (similarity - largest): the difference is taken
// before anything is rounded at the size of a logit.
template <typename T>
struct Scale {
  T sign;  // largest logits belong to the largest sign * similarity
  T gain;  // |scale|, kept off zero so that -infinity stays that

  explicit Scale(double scale)
      : sign(scale < 0 ? -1 : 1),
        gain(std::abs(scale) < std::numeric_limits<T>::min() ? std::numeric_limits<T>::min()
                                                             : T(std::abs(scale))) {}

  double exp_of(T x, T largest) const { return std::exp(gain * (double(x) - double(largest))); }
};

template <typename T>
struct Negatives {  // running sums of rows and columns, of exp(gain * (x - max))
  T* row_max;       // (rows,)
  double* row_sum;  // (rows,)
  T* col_max;       // (cols,)
  T* col_sum;       // (cols,)
};

template <typename T>
struct GradOfSums {    // what the gradient of a tile depends on
  const T* row_shift;  // (rows,)
  const T* col_shift;  // (cols,)
  const T* row;        // (rows,) gradient of the row's sum
  const T* col;        // (cols,) gradient of the column's sum
  const T* own;        // (rows,) gradient of the pair's similarity
};

namespace baseline {
#define CFMVIT_LANES 4
#include "cpu/contrastive_tile.inc"
#undef CFMVIT_LANES
}  // namespace baseline

// AVX2 makes the passes 3 to 4 times as fast as the baseline, fused multiply-adds a third faster again,
// AVX-512 those of gradients in float32 another quarter; add_tile takes a third longer with it.
#ifdef CFMVIT_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#pragma GCC optimize("fp-contract=fast")
namespace avx2 {
#define CFMVIT_LANES 8
#include "cpu/contrastive_tile.inc"
#undef CFMVIT_LANES
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#pragma GCC optimize("fp-contract=fast")
namespace avx512 {
#define CFMVIT_LANES 16
#include "cpu/contrastive_tile.inc"
#undef CFMVIT_LANES
}  // namespace avx512
#pragma GCC pop_options
#else
namespace avx2 = baseline;
namespace avx512 = baseline;
#endif

template <typename T>
void add_tile(T* tile, int64_t rows, int64_t cols, int64_t stride, int64_t own, Scale<T> scale,
              const Negatives<T>& sums, T* old_max) {
  const auto run = kHasAvx2 ? avx2::add_tile<T> : baseline::add_tile<T>;
  run(tile, rows, cols, stride, own, scale, sums, old_max);
}

template <typename T>
void max_of_others(const T* tile, int64_t rows, int64_t cols, int64_t stride, const int64_t* row_group,
                   const int64_t* col_group, T* row_max, T* col_max) {
  const auto run = kHasAvx2 ? avx2::max_of_others<T> : baseline::max_of_others<T>;
  run(tile, rows, cols, stride, row_group, col_group, row_max, col_max);
}

template <typename T>
double grad_tile(T* tile, int64_t rows, int64_t cols, int64_t stride, int64_t own, T scale,
                 const GradOfSums<T>& grads) {
  if constexpr (std::is_same_v<T, float>) {
    if (kHasAvx512) return avx512::grad_tile<T>(tile, rows, cols, stride, own, scale, grads);
  }
  const auto run = kHasAvx2 ? avx2::grad_tile<T> : baseline::grad_tile<T>;
  return run(tile, rows, cols, stride, own, scale, grads);
}

template <typename T>
std::array<double, 3> sigmoid_tile(T* tile, int64_t rows, int64_t cols, int64_t stride, int64_t own, T scale,
                                   T bias) {
  if constexpr (std::is_same_v<T, float>) {
    if (kHasAvx512) return avx512::sigmoid_tile<T>(tile, rows, cols, stride, own, scale, bias);
  }
  const auto run = kHasAvx2 ? avx2::sigmoid_tile<T> : baseline::sigmoid_tile<T>;
  return run(tile, rows, cols, stride, own, scale, bias);
}

}  // namespace cfmvit::contrastive
