// The weights of every box: for each axis and bin the pixels that it reads, each once, with the weights of
// all samples that share it (regions_axis.h). Made by a kernel of its own, so that the kernels that read maps
// do it with two plain loops, over the taps of y and of x, whatever the sampling.
//
// R boxes, P x Q bins (1 x 1 where bins are merged), M maps = levels * images.
#pragma once

#include "kernels/portable.cuh"
#include "plain/regions_axis.h"

namespace cfmvit::kernels {

using regions::Sampling;

constexpr int kMostLevels = 32;  // of a pyramid: what travels as a kernel's parameter

// The maps of one level of a pyramid.
template <typename S>
struct Level {
  S* data;  // (images, height, width, channels) of these strides
  int64_t height, width, image, row;
  int32_t pixel;  // with 32 bits, an address is one instruction
  int64_t channel;
  double scale;  // pixels per unit of the boxes
};

template <typename S>
struct Pyramid {
  Level<S> level[kMostLevels];
  int levels;
  int64_t images;
};

// What boxes need to know of them.
struct Sides {
  int64_t height[kMostLevels], width[kMostLevels], images;
  double scale[kMostLevels];
  int levels;
};
template <typename S>
Sides sides_of(const Pyramid<S>& maps) {
  Sides out{};
  out.levels = maps.levels;
  out.images = maps.images;
  for (int l = 0; l < maps.levels; ++l) {
    out.height[l] = maps.level[l].height;
    out.width[l] = maps.level[l].width;
    out.scale[l] = maps.level[l].scale;
  }
  return out;
}

template <typename Coordinate>
struct Boxes {
  const Coordinate* roi;  // (R, 5) image number, x1, y1, x2, y2
  const int64_t* level;   // (R,) or null where there is one
  int64_t count;
};

template <typename T>
struct alignas(2 * sizeof(T)) Tap {  // read at once
  int32_t pixel;
  T weight;
};

template <typename T>
struct AxisTables {
  int32_t* begin;  // (R, bins + 1) where the taps of each bin begin
  Tap<T>* tap;     // (R, most) ascending in each bin
  int32_t bins;
  int64_t most;

  __device__ const int32_t* begins(int64_t box) const { return begin + box * (bins + 1); }
  __device__ const Tap<T>* taps(int64_t box) const { return tap + box * most; }
  __device__ int32_t count(int64_t box) const { return begins(box)[bins]; }
};

// A box whose image or level is none of the pyramid's has no taps.
template <typename T>
struct Tables {
  int32_t* map;  // (R,) level * images + image, or -1
  AxisTables<T> y, x;
};

// Carves arrays out of one workspace; counts its bytes where there is none yet.
class Workspace {
 public:
  explicit Workspace(char* base = nullptr) : base_(base) {}
  template <typename T>
  T* take(int64_t count) {
    T* const out = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return out;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// length: of the axis, on the largest level.
template <typename T>
AxisTables<T> axis_tables(Workspace& workspace, int64_t boxes, const Sampling& sampling, int64_t bins,
                          int64_t length) {
  // Bins follow one another along the axis and share at most the pixels of a border, three by rounding.
  const int64_t pixels = sampling.merge ? length : length + 3 * bins;
  const bool few = sampling.ratio > 0 && sampling.ratio < pixels / (2 * bins);
  const int64_t most = few ? 2 * bins * sampling.ratio : pixels, lists = sampling.merge ? 1 : bins;
  int32_t* const begin = workspace.take<int32_t>(boxes * (lists + 1));
  return {begin, workspace.take<Tap<T>>(boxes * most), static_cast<int32_t>(lists), most};
}

template <typename T>
Tables<T> tables_of(Workspace& workspace, int64_t boxes, const Sampling& sampling, int64_t height,
                    int64_t width) {
  int32_t* const map = workspace.take<int32_t>(boxes);
  const auto y = axis_tables<T>(workspace, boxes, sampling, sampling.bins_y, height);
  return {map, y, axis_tables<T>(workspace, boxes, sampling, sampling.bins_x, width)};
}

// Merges samples, which come in ascending order, by pixel.
template <typename T>
class TapWriter {
 public:
  __device__ TapWriter(Tap<T>* tap, int64_t most) : tap_(tap), most_(most) {}

  __device__ void add(int64_t pixel, double fraction, double share) {
    if (pixel < pixel_) {  // where one bin follows another, by rounding: the same position but for that
      pixel = pixel_;
      fraction = 0;
    }
    if (pixel > pixel_) {
      write(pixel_, here_);
      if (pixel > pixel_ + 1) {
        write(pixel_ + 1, next_);
        next_ = 0;
      }
      here_ = next_;
      next_ = 0;
      pixel_ = pixel;
    }
    here_ += (1 - fraction) * share;
    next_ += fraction * share;
  }

  // Ends a bin; returns the number of taps so far.
  __device__ int32_t end() {
    write(pixel_, here_);
    write(pixel_ + 1, next_);
    pixel_ = -2;
    here_ = next_ = 0;
    return count_;
  }

 private:
  __device__ void write(int64_t pixel, double weight) {
    if (weight == 0 || count_ >= most_) return;
    tap_[count_++] = {static_cast<int32_t>(pixel), static_cast<T>(weight)};
  }

  Tap<T>* tap_;
  int64_t most_, pixel_ = -2;
  double here_ = 0, next_ = 0;
  int32_t count_ = 0;
};

// One thread an axis of a box.
template <typename T, typename Coordinate>
__global__ void __launch_bounds__(128)
    tables_kernel(Boxes<Coordinate> boxes, Sides maps, Sampling sampling, Tables<T> out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, box = i / 2;
  const int axis = static_cast<int>(i % 2);
  if (box >= boxes.count) return;
  const Coordinate* const roi = boxes.roi + 5 * box;
  const int64_t level = boxes.level == nullptr ? 0 : boxes.level[box];
  const bool known = roi[0] >= Coordinate(0) && roi[0] < static_cast<Coordinate>(maps.images) && level >= 0 &&
                     level < maps.levels;
  if (axis == 0) {
    out.map[box] = known ? static_cast<int32_t>(level * maps.images + static_cast<int64_t>(roi[0])) : -1;
  }
  const int64_t on = known ? level : 0, length = axis == 0 ? maps.height[on] : maps.width[on];
  auto samples = regions::samples_of(roi, static_cast<Coordinate>(maps.scale[on]), sampling, axis);
  if (!known) samples.count = 0;

  const AxisTables<T> mine = axis == 0 ? out.y : out.x;
  int32_t* const begin = mine.begin + box * (mine.bins + 1);
  TapWriter<T> writer(mine.tap + box * mine.most, mine.most);
  begin[0] = 0;
  // Of an inverted box positions fall with the number of the sample.
  const bool falls = samples.bin_size < Coordinate(0);
  for (int64_t bin = 0; bin < sampling.bins(axis); ++bin) {
    const auto position = [&](int64_t k) { return samples.position(bin, falls ? samples.count - 1 - k : k); };
    int64_t first = 0;  // sample inside the map, by bisection: boxes may begin far outside
    for (int64_t end = samples.count; first < end;) {
      const int64_t middle = (first + end) / 2;
      if (position(middle) < Coordinate(-1)) {
        first = middle + 1;
      } else {
        end = middle;
      }
    }
    for (int64_t k = first; k < samples.count; ++k) {
      const Coordinate at = position(k);
      if (!regions::inside(at, length)) break;
      const regions::Bilinear read = regions::bilinear(at, length);
      writer.add(read.pixel, read.fraction, samples.share);
    }
    if (!sampling.merge) begin[bin + 1] = writer.end();
  }
  if (sampling.merge) begin[1] = writer.end();
}

template <typename T, typename Coordinate, typename S>
void make_tables(const Boxes<Coordinate>& boxes, const Pyramid<S>& maps, const Sampling& sampling,
                 const Tables<T>& out, cudaStream_t stream) {
  constexpr int64_t kThreads = 128;
  launch(tables_kernel<T, Coordinate>, static_cast<unsigned>((2 * boxes.count + kThreads - 1) / kThreads),
         kThreads, 0, stream, boxes, sides_of(maps), sampling, out);
}

}  // namespace cfmvit::kernels
