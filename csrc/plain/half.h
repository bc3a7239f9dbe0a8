// 16-bit floats as plain bits, and conversions without branches or instructions of a special set, so that
// loops over them vectorise everywhere, and CUDA kernels compile them too.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define CFMVIT_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define CFMVIT_INLINE inline __attribute__((always_inline))
#endif

namespace cfmvit {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The accumulation type of features of type S.
template <typename S>
using acc_t = std::conditional_t<std::is_same_v<S, double>, double, float>;

// The wider of two accumulation types.
template <typename S, typename T>
using Wider = std::conditional_t<std::is_same_v<S, double> || std::is_same_v<T, double>, double, float>;

CFMVIT_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
CFMVIT_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
// To the accumulation type, exactly.
CFMVIT_INLINE float to_acc(float x) { return x; }
CFMVIT_INLINE double to_acc(double x) { return x; }
CFMVIT_INLINE float to_acc(uint8_t x) { return x; }
CFMVIT_INLINE float to_acc(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }
CFMVIT_INLINE float to_acc(Half x) {
#ifdef __CUDA_ARCH__  // one instruction
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t magnitude = x.bits & 0x7fffu;
  const float finite = float_of(magnitude << 13) * 0x1p112f;  // the exponents' biases differ by 112
  const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13 | 0x7f800000u) : bits_of(finite);
  return float_of(bits | uint32_t(x.bits & 0x8000u) << 16);
#endif
}
// From the accumulation type, to nearest, ties to even.
template <typename Real>
CFMVIT_INLINE void from_acc(Real x, float& out) {
  out = static_cast<float>(x);
}
template <typename Real>
CFMVIT_INLINE void from_acc(Real x, double& out) {
  out = x;
}
CFMVIT_INLINE void from_acc(float x, BFloat16& out) {
#ifdef __CUDA_ARCH__
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
#endif
}
CFMVIT_INLINE void from_acc(float x, Half& out) {
#ifdef __CUDA_ARCH__
  out.bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffffu;
  const uint32_t tiny =
      bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds subnormal results
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t huge = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t half = magnitude >= 0x47800000u ? huge : magnitude < 0x38800000u ? tiny : normal;
  out.bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
#endif
}

}  // namespace cfmvit
