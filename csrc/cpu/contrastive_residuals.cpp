#include "cpu/contrastive_residuals.h"

#include <cmath>
#include <cstdlib>

#include "cpu/capability.h"

#ifdef CFMVIT_X86
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in intrinsics, by mistake: GCC bug 105593
#endif

namespace cfmvit::contrastive {

#ifdef CFMVIT_X86

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16")

namespace {

__mmask16 first(int64_t count) { return count >= 16 ? 0xffff : (1 << count) - 1; }

__m512 widened(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

double squared_norm(Matrix<const float> x) {  // squares of small gradients vanish in float32
  __m512d sums[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t j = 0; j < x.cols; j += 16) {
      const __m512 values = _mm512_maskz_loadu_ps(first(x.cols - j), x.data + r * x.row + j);
      const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(values));
      const __m512d high =
          _mm512_cvtps_pd(_mm512_castps512_ps256(_mm512_shuffle_f32x4(values, values, 0xee)));
      sums[0] = _mm512_fmadd_pd(low, low, sums[0]);
      sums[1] = _mm512_fmadd_pd(high, high, sums[1]);
    }
  }
  return _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]));
}

}  // namespace

void round_tile(Matrix<const float> tile, Matrix<BFloat16> rounded, Residuals& found) {
  found.large.clear();
  found.rows.assign(tile.rows, 0.0f);
  found.cols.resize(tile.cols);
  const float least = static_cast<float>(std::sqrt(squared_norm(tile) / (16.0 * double(tile.rows))));
  const __mmask16 known = least > 0 && !std::isinf(least) ? 0xffff : 0;  // not of zeros, nor of infinities
  for (int64_t r = 0; r < tile.rows; ++r) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < tile.cols; j += 16) {
      const __mmask16 lanes = first(tile.cols - j);
      const __m512 x = _mm512_maskz_loadu_ps(lanes, tile.data + r * tile.row + j);
      const __m256i y = (__m256i)_mm512_cvtneps_pbh(x);
      _mm256_mask_storeu_epi16(rounded.data + r * rounded.row + j, lanes, y);
      const __m512 lost = _mm512_sub_ps(x, widened(y));
      unsigned large = _mm512_mask_cmp_ps_mask(known, _mm512_abs_ps(x), _mm512_set1_ps(least), _CMP_GE_OQ);
      const __mmask16 others = known & ~large;
      sum = _mm512_mask_add_ps(sum, others, sum, lost);
      const __m512 of_cols = _mm512_maskz_loadu_ps(lanes, found.cols.data() + j);
      _mm512_mask_storeu_ps(found.cols.data() + j, lanes, _mm512_mask_add_ps(of_cols, others, of_cols, lost));
      if (large) [[unlikely]] {
        float values[16];
        _mm512_storeu_ps(values, lost);
        for (; large; large &= large - 1) {
          const int k = __builtin_ctz(large);
          found.large.push_back({r, j + k, values[k]});
        }
      }
    }
    found.rows[r] = _mm512_reduce_add_ps(sum);
  }
}

void add_scaled(float* out, float factor, const BFloat16* x, int64_t n) {
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 lanes = first(n - k);
    const __m512 value = widened(_mm256_maskz_loadu_epi16(lanes, x + k));
    const __m512 sum = _mm512_maskz_loadu_ps(lanes, out + k);
    _mm512_mask_storeu_ps(out + k, lanes, _mm512_fmadd_ps(_mm512_set1_ps(factor), value, sum));
  }
}

#pragma GCC pop_options

#else

void round_tile(Matrix<const float>, Matrix<BFloat16>, Residuals&) { std::abort(); }
void add_scaled(float*, float, const BFloat16*, int64_t) { std::abort(); }

#endif

}  // namespace cfmvit::contrastive
