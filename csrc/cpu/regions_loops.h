// The loops over one block of channels of the boxes of one map, compiled for each instruction set, and the
// choice among them.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "cpu/capability.h"
#include "cpu/interrupt.h"
#include "cpu/regions_types.h"

namespace cfmvit::regions {

// Scratch memory that is aligned, grows and is not cleared.
template <typename T>
class Buffer {
 public:
  T* get(int64_t count) {
    if (count > size_) {
      data_.reset();
      data_.reset(static_cast<T*>(::operator new(sizeof(T) * count, kAlign)));
      size_ = count;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Delete {
    void operator()(T* data) const { ::operator delete(data, kAlign); }
  };
  std::unique_ptr<T, Delete> data_;
  int64_t size_ = 0;
};

template <typename T>
struct Scratch {
  Buffer<T> slab, rows, tile;
  Buffer<int64_t> offset;
};

// A rectangle of a map, copied as (rows, columns, block of channels).
struct Slab {
  int64_t y_begin, y_end, x_begin, x_end;
  int64_t width() const { return x_end - x_begin; }
  int64_t area() const { return (y_end - y_begin) * width(); }
};

// Boxes of one map and `channels` <= kBlock channels from `first_channel` on.
template <typename T>
struct WorkItem {
  const Box<T>* boxes;
  int64_t count, first_channel, channels;
  Interrupt* interrupt;

  bool is_interrupted(int64_t i) const { return i % kBoxesPerCheck == 0 && interrupt->requested(); }

 private:
  static constexpr int64_t kBoxesPerCheck = 64;
};

// A full block of channels is four vectors of 64 bytes: enough sums in flight to hide their latency.
constexpr int kVectors = 4;
template <typename T>
constexpr int64_t kVector = 64 / sizeof(T);
template <typename T>
constexpr int64_t kBlock = kVectors * kVector<T>;
constexpr int64_t kCopyBytes = int64_t{1} << 25;  // bound of a copied rectangle

template <typename T>
constexpr T kSmallestNorm = T(1e-12);

#define CFMVIT_INLINE_LAMBDA __attribute__((always_inline))
#if __has_builtin(__builtin_shufflevector)
#define CFMVIT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC 11: Lanes is a vector of integers as wide as the numbers
#define CFMVIT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Lanes{__VA_ARGS__})
#endif

namespace baseline {
#define CFMVIT_BYTES 16
#include "cpu/regions_loops.inc"
#undef CFMVIT_BYTES
}  // namespace baseline

#ifdef CFMVIT_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define CFMVIT_BYTES 32
#include "cpu/regions_loops.inc"
#undef CFMVIT_BYTES
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#define CFMVIT_BYTES 64
#include "cpu/regions_loops.inc"
#undef CFMVIT_BYTES
}  // namespace avx512
#pragma GCC pop_options
#else
namespace avx2 = baseline;
namespace avx512 = baseline;
#endif

#define CFMVIT_REGIONS(...) \
  (kHasAvx512 ? avx512::__VA_ARGS__ : kHasAvx2 ? avx2::__VA_ARGS__ : baseline::__VA_ARGS__)

// Writes the bins of the item's boxes.
template <typename T, typename S>
void forward_item(const Map<T, const S>& map, const Bins<S>& out, const WorkItem<T>& item,
                  Scratch<T>& scratch) {
  const auto run = item.channels > kVector<T> ? CFMVIT_REGIONS(forward_block<T, kVectors, S>)
                                              : CFMVIT_REGIONS(forward_block<T, 1, S>);
  run(map, out, item, scratch);
}

// Writes rows [y_begin, y_end) of the gradient of a map, G being the type of the gradient of the bins.
template <typename T, typename S, typename G>
void backward_item(const Bins<const G>& grad, const Map<T, S>& map, int64_t y_begin, int64_t y_end,
                   const WorkItem<T>& item, Scratch<T>& scratch) {
  const auto run = item.channels > kVector<T> ? CFMVIT_REGIONS(backward_block<T, kVectors, S, G>)
                                              : CFMVIT_REGIONS(backward_block<T, 1, S, G>);
  run(grad, map, y_begin, y_end, item, scratch);
}

}  // namespace cfmvit::regions
