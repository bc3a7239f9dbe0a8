// A GPU on the CPU, for tests of csrc/kernels: what csrc/kernels/portable.cuh lists, in its words. One
// translation unit includes it; the engine behind it is fibers.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Thread-local storage is the program's one segment that holds nothing else, so that it can be poisoned as a
// whole.
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;
using cudaStream_t = struct CUstream_st*;

#include "fibers.h"

using std::max;
using std::min;

// Where the call stands, for the messages and for telling exchanges apart.
#define CFMVIT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CFMVIT_HERE) { cfmvit::emulation::barrier({"__syncthreads", file, line}); }

inline void __syncwarp(unsigned mask = 0xffffffffu, CFMVIT_HERE) {
  cfmvit::emulation::exchange({"__syncwarp", file, line}, mask, 0, cfmvit::emulation::lane());
}

namespace cfmvit::emulation {

// The value that `source` gives; a source outside of the caller's segment of `width` lanes is the caller
// itself.
template <typename T>
T shuffle(Place place, unsigned mask, T value, int source, bool inside) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "shuffles take numbers of 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(place, mask, bits, inside ? source : lane());
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace cfmvit::emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CFMVIT_HERE) {
  const int segment = cfmvit::emulation::lane() & -width;
  return cfmvit::emulation::shuffle({"__shfl_sync", file, line}, mask, value,
                                    segment + (source & (width - 1)), true);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CFMVIT_HERE) {
  const int lane = cfmvit::emulation::lane(), source = lane ^ bits;
  return cfmvit::emulation::shuffle({"__shfl_xor_sync", file, line}, mask, value, source,
                                    source < (lane & -width) + width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32, CFMVIT_HERE) {
  const int lane = cfmvit::emulation::lane();
  return cfmvit::emulation::shuffle({"__shfl_down_sync", file, line}, mask, value, lane + delta,
                                    (lane & (width - 1)) + delta < width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32, CFMVIT_HERE) {
  const int lane = cfmvit::emulation::lane();
  return cfmvit::emulation::shuffle({"__shfl_up_sync", file, line}, mask, value, lane - delta,
                                    (lane & (width - 1)) >= delta);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CFMVIT_HERE) {
  return static_cast<unsigned>(cfmvit::emulation::exchange({"__ballot_sync", file, line}, mask,
                                                           predicate ? 1 : 0, cfmvit::emulation::kVote));
}
inline int __any_sync(unsigned mask, int predicate, CFMVIT_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CFMVIT_HERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}
#undef CFMVIT_HERE

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}
inline void __threadfence() {}

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
// glibc declares __expf and __logf itself, for its own use.
#define __expf expf
#define __logf logf
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }

// Fibers are switched at barriers and exchanges only, so plain code is atomic.
template <typename T, typename Update>
T atomic_update(T* at, const Update& update) {
  static_assert(std::is_integral_v<T>, "atomics on floating point depend on the schedule");
  cfmvit::emulation::races.now.atomic = true;
  const T before = *at;
  *at = update(before);
  cfmvit::emulation::races.now.atomic = false;
  return before;
}
template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> by) {
  return atomic_update(at, [&](T x) { return static_cast<T>(x + by); });
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> by) {
  return atomic_update(at, [&](T x) { return static_cast<T>(x | by); });
}
template <typename T>
T atomicAnd(T* at, std::type_identity_t<T> by) {
  return atomic_update(at, [&](T x) { return static_cast<T>(x & by); });
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> by) {
  return atomic_update(at, [&](T x) { return std::max(x, by); });
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> by) {
  return atomic_update(at, [&](T x) { return std::min(x, by); });
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> by) {
  return atomic_update(at, [&](T) { return by; });
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> compare, std::type_identity_t<T> by) {
  return atomic_update(at, [&](T x) { return x == compare ? by : x; });
}
