// The work on one block of channels: what it needs, the loops for each instruction set, the choice among
// them. Knows nothing of torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>

#include "half.h"
#include "regions_taps.h"

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

struct Strides {
  int64_t row, place, channel;
};

template <typename T, typename S>
struct Map {  // one image of one level
  S* data;
  int64_t height, width;
  Strides stride;
  const T* scale;  // (height * width,) factor of each place, or null
};

// Per-box results or their gradients: element (box, bin, channel).
template <typename S>
struct Bins {
  S* data;
  int64_t y, x;  // bins
  int64_t box_stride, bin_stride, channel_stride;
};

// A rectangle of a map, copied as (rows, columns, block of channels).
struct Slab {
  int64_t y_begin, y_end, x_begin, x_end;
  int64_t width() const { return x_end - x_begin; }
  int64_t area() const { return (y_end - y_begin) * width(); }
};

// Boxes of one map and `channels` <= kBlock channels from `first_channel` on.
template <typename T>
struct Job {
  const Box<T>* boxes;
  int64_t count, first_channel, channels;
};

constexpr int kVectors =
    4;  // 64-byte vectors of a full block of channels; enough sums in flight to hide their latency
template <typename T>
constexpr int64_t kBlock = kVectors * 64 / sizeof(T);

template <typename T>
constexpr T kSmallestLength = T(1e-12);

#define CFMVIT_INLINE_LAMBDA __attribute__((always_inline))

namespace baseline {
#define CFMVIT_BYTES 16
#include "regions_loops.inc"
#undef CFMVIT_BYTES
}  // namespace baseline

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define CFMVIT_BYTES 32
#include "regions_loops.inc"
#undef CFMVIT_BYTES
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#define CFMVIT_BYTES 64
#include "regions_loops.inc"
#undef CFMVIT_BYTES
}  // namespace avx512
#pragma GCC pop_options

inline const int kIsa = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                                __builtin_cpu_supports("avx512dq")
                            ? 2
                            : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
namespace avx2 = baseline;
namespace avx512 = baseline;
inline const int kIsa = 0;
#endif

// Writes the bins of the job's boxes.
template <typename T, typename S>
void forward(const Map<T, const S>& map, const Bins<S>& out, const Job<T>& job, Scratch<T>& scratch) {
  const bool narrow_block = job.channels <= 64 / static_cast<int64_t>(sizeof(T));
  const auto run = [&](auto one, auto full) { (narrow_block ? one : full)(map, out, job, scratch); };
  kIsa == 2   ? run(avx512::forward<T, 1, S>, avx512::forward<T, kVectors, S>)
  : kIsa == 1 ? run(avx2::forward<T, 1, S>, avx2::forward<T, kVectors, S>)
              : run(baseline::forward<T, 1, S>, baseline::forward<T, kVectors, S>);
}

// Writes rows [y_begin, y_end) of the gradient of a map, G of them being the type of the gradient of the
// bins.
template <typename T, typename S, typename G>
void backward(const Bins<const G>& grad, const Map<T, S>& map, int64_t y_begin, int64_t y_end,
              const Job<T>& job, Scratch<T>& scratch) {
  const bool narrow_block = job.channels <= 64 / static_cast<int64_t>(sizeof(T));
  const auto run = [&](auto one, auto full) {
    (narrow_block ? one : full)(grad, map, y_begin, y_end, job, scratch);
  };
  kIsa == 2   ? run(avx512::backward<T, 1, S, G>, avx512::backward<T, kVectors, S, G>)
  : kIsa == 1 ? run(avx2::backward<T, 1, S, G>, avx2::backward<T, kVectors, S, G>)
              : run(baseline::backward<T, 1, S, G>, baseline::backward<T, kVectors, S, G>);
}

template <typename T, typename S>
T inverse_length(const S* token, int64_t stride, int64_t channels) {
  const auto run = kIsa > 0 ? avx2::token_scale<T, S> : baseline::token_scale<T, S>;
  return run(token, stride, channels);
}

template <typename T, typename S>
void unnormalize(const S* token, int64_t stride, int64_t channels, const T* grad, S* out) {
  const auto run = kIsa > 0 ? avx2::unnormalize<T, S> : baseline::unnormalize<T, S>;
  run(token, stride, channels, grad, out);
}

}  // namespace cfmvit::regions
