// Products of 16-bit matrices on tensor cores (compute capability 8.0 and later), and copies into shared
// memory behind the computation. Under the emulation the same fragments, element by element.
//
// Fragments of a warp, lane = 4 g + t, as in the PTX manual (mma.m16n8k16): A (16 x 16, by rows) holds in
// word i the pair (row g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next); B (16 x 8) in word i the pair
// (rows 2 t + 8 i and the next, column g); D (16 x 8) in entry i (row g + 8 (i / 2), column 2 t + i % 2).
#pragma once

#include "kernels/portable.cuh"
#include "plain/half.h"

namespace cfmvit::kernels {

template <typename S>
constexpr bool kHasTensorCores = std::is_same_v<S, BFloat16> || std::is_same_v<S, Half>;

template <typename S>
__device__ uint32_t pair_of(S low, S high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}

// The pair of the low (i = 0) or of the high (1) halves of two words.
__device__ inline uint32_t pair_in(uint32_t low, uint32_t high, int i) {
#ifdef __CUDACC__
  return __byte_perm(low, high, i == 0 ? 0x5410 : 0x7632);
#else
  return i == 0 ? (low & 0xffff) | high << 16 : low >> 16 | (high & 0xffff0000);
#endif
}

#ifdef __CUDACC__

// d += a b
template <typename S>
__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Four 8 x 8 matrices in shared memory, transposed: lane 8 i + r gives the address of row r of matrix i, 16
// bytes; word i of each lane is then the pair (rows 2 t and the next, column g) of matrix i.
template <typename S>
__device__ void load_transposed(uint32_t (&words)[4], const S* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(at)
               : "memory");
}

// An 8 x 8 matrix of 16-bit numbers, of which a lane has the pair (row g, columns 2 t and the next),
// transposed.
__device__ inline uint32_t transposed(uint32_t pair) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

// 16 bytes of global memory into shared memory, or zeros where `valid` is 0, for which nothing is read;
// complete for a thread after wait_copies, for others after a barrier.
__device__ inline void copy_async(void* to, const void* from, unsigned valid) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile(
      "{.reg .pred skip; setp.eq.u32 skip, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, skip;}" ::"r"(at),
      "l"(from), "r"(valid)
      : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of the committed groups are under way.
template <int kPending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#else

template <typename S>
float half_of(uint32_t pair, int i) {
  return to_acc(S{static_cast<uint16_t>(pair >> (16 * i))});
}

template <typename S>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  for (int part = 0; part < 4; ++part) {  // columns 2 part, 2 part + 1 and those plus 8 of A
    uint32_t rows[4], columns[2][2];
    for (int i = 0; i < 4; ++i) rows[i] = __shfl_sync(kAllLanes, a[i], 4 * g + part);
    for (int j = 0; j < 2; ++j) {
      columns[j][0] = __shfl_sync(kAllLanes, b0, 4 * (2 * t + j) + part);
      columns[j][1] = __shfl_sync(kAllLanes, b1, 4 * (2 * t + j) + part);
    }
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 4; ++k) {
        d[i] += half_of<S>(rows[i / 2 + k / 2 * 2], k % 2) * half_of<S>(columns[i % 2][k / 2], k % 2);
      }
    }
  }
}

template <typename S>
void load_transposed(uint32_t (&words)[4], const S* row) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const auto address = reinterpret_cast<uintptr_t>(row);
  for (int i = 0; i < 4; ++i) {
    const uintptr_t low = __shfl_sync(kAllLanes, address, 8 * i + 2 * t);
    const uintptr_t high = __shfl_sync(kAllLanes, address, 8 * i + 2 * t + 1);
    words[i] = pair_of(reinterpret_cast<const S*>(low)[g], reinterpret_cast<const S*>(high)[g]);
  }
}

inline uint32_t transposed(uint32_t pair) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const uint32_t low = __shfl_sync(kAllLanes, pair, 8 * t + g / 2);
  const uint32_t high = __shfl_sync(kAllLanes, pair, 8 * t + 4 + g / 2);
  return pair_in(low, high, g % 2);
}

inline void copy_async(void* to, const void* from, unsigned valid) {
  valid ? std::memcpy(to, from, 16) : std::memset(to, 0, 16);
}
inline void commit_copies() {}
template <int kPending>
void wait_copies() {}

#endif

}  // namespace cfmvit::kernels
