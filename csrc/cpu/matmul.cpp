#include "cpu/matmul.h"

#include <cstdlib>
#include <memory>

#include "cpu/capability.h"

#ifdef CFMVIT_X86
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in intrinsics, by mistake: GCC bug 105593
#endif

namespace cfmvit::products {

#ifdef CFMVIT_X86

namespace {

// A panel holds 8 rows of a, or 32 columns of b, word after word along k. The 8 x 32 sums of one pair of
// panels stay in 16 registers; each word of a is multiplied with two registers of b.
constexpr int64_t kRows = 8, kCols = 32, kGroup = 16;
constexpr int64_t kDepth = 512;           // along k in a panel: one of b takes 64 KiB, or 32 in bfloat16
constexpr int64_t kBlockWords = 1 << 16;  // of packed a: 256 KiB, which stay in a core's L2

// Room of a thread for packed operands.
struct Scratch {
  alignas(64) int32_t a[kBlockWords];
  alignas(64) int32_t b[kDepth * kCols];

  static Scratch& mine() {
    thread_local const auto scratch = std::make_unique_for_overwrite<Scratch>();
    return *scratch;
  }
};

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl")
namespace float32 {
#include "cpu/matmul_pack.inc"
struct Floats {  // a word is a float
  using T = float;
  static constexpr int64_t kPerWord = 1;
  static __m512i along(const float* x, int64_t left) {
    return _mm512_castps_si512(_mm512_maskz_loadu_ps(first(left), x));
  }
  static __m512i across(const float* x, int64_t, int64_t, __mmask16 lanes) {
    return _mm512_castps_si512(_mm512_maskz_loadu_ps(lanes, x));
  }
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
};
#include "cpu/matmul.inc"
}  // namespace float32
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16")
namespace bfloat16 {
#include "cpu/matmul_pack.inc"
// A word is a pair of neighbours along k, the first in its lower half; an odd one out has a zero for
// neighbour.
CFMVIT_INLINE __m512i interleave(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}
struct Pairs {
  using T = BFloat16;
  static constexpr int64_t kPerWord = 2;
  static __m512i along(const BFloat16* x, int64_t left) {
    return _mm512_maskz_loadu_epi16(left >= 32 ? ~0u : (1u << left) - 1, x);
  }
  static __m512i across(const BFloat16* x, int64_t stride, int64_t left, __mmask16 lanes) {
    return interleave(_mm256_maskz_loadu_epi16(lanes, x),
                      _mm256_maskz_loadu_epi16(left > 1 ? lanes : 0, x + (left > 1 ? stride : 0)));
  }
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};
#include "cpu/matmul.inc"
}  // namespace bfloat16
#pragma GCC pop_options

}  // namespace

void multiply(Matrix<float> out, Matrix<const float> a, Matrix<const float> b, bool accumulate) {
  float32::multiply<float32::Floats>(out, a, b, accumulate);
}

void multiply(Matrix<float> out, Matrix<const BFloat16> a, Matrix<const BFloat16> b, bool accumulate) {
  bfloat16::multiply<bfloat16::Pairs>(out, a, b, accumulate);
}

#else

void multiply(Matrix<float>, Matrix<const float>, Matrix<const float>, bool) { std::abort(); }
void multiply(Matrix<float>, Matrix<const BFloat16>, Matrix<const BFloat16>, bool) { std::abort(); }

#endif

}  // namespace cfmvit::products
