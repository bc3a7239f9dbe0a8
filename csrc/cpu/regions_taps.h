// From a box to the pixels of a map that it reads, and their weights: the sparse matrices of
// regions_axis.h.
//
// Compiled for the baseline only: a fused multiply-add would move samples across the borders that torchvision
// sees.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plain/regions_axis.h"

namespace cfmvit::regions {

constexpr int64_t kBoxesPerTable = 64;

// Row i of the matrix of an axis: entries [begin, begin + count) of the other side have weights from `weight`
// on.
struct Run {
  int64_t begin, count, weight;
};

template <typename T>
struct Axis {
  const int64_t* pixel;  // (pixels,) ascending
  int64_t pixels;
  const Run* runs;  // by bin, or by pixel where the table is transposed
  const T* weight;
};

template <typename T>
struct Box {
  int64_t number;  // which row of the result
  Axis<T> y, x;
};

// Matrices of a group of boxes in a few long arrays.
template <typename T>
class Table {
 public:
  // roi: image number, x1, y1, x2, y2. `transposed` gives runs by pixel, for the backward.
  template <typename Coordinate>
  void add(const Coordinate* roi, Coordinate scale, int64_t height, int64_t width, const Sampling& sampling,
           bool transposed) {
    add_axis(samples_of(roi, scale, sampling, 0), height, sampling.bins_y, sampling.merge, transposed);
    add_axis(samples_of(roi, scale, sampling, 1), width, sampling.bins_x, sampling.merge, transposed);
  }

  Box<T> box(int64_t i, int64_t number) const { return {number, axis(2 * i), axis(2 * i + 1)}; }

 private:
  struct Span {
    int64_t pixel, pixels, run;
  };
  struct Entry {
    int64_t pixel;
    double weight;
  };

  Axis<T> axis(int64_t i) const {
    const Span& span = spans_[i];
    return {pixel_.data() + span.pixel, span.pixels, runs_.data() + span.run, weight_.data()};
  }

  // Appends the matrix of one axis.
  template <typename Coordinate>
  void add_axis(const Samples<Coordinate>& samples, int64_t length, int64_t bins, bool merge,
                bool transposed) {
    const int64_t rows = merge ? 1 : bins;
    if (static_cast<int64_t>(dense_.size()) < length) dense_.resize(length, 0.0);
    entries_.clear();
    row_end_.clear();
    int64_t low = length, high = -1;  // pixels of this row of the matrix
    for (int64_t bin = 0; bin < bins; ++bin) {
      for (int64_t i = first_inside(samples, bin, length); i < samples.count; ++i) {
        const Coordinate at = samples.position(bin, i);
        if (!inside(at, length)) break;
        const auto [pixel, fraction] = bilinear(at, length);
        dense_[pixel] += (1.0 - fraction) * samples.share;
        if (fraction > 0.0) dense_[pixel + 1] += fraction * samples.share;
        low = std::min(low, pixel);
        high = std::max(high, pixel + (fraction > 0.0));
      }
      if (merge && bin + 1 < bins) continue;
      for (int64_t pixel = low; pixel <= high; ++pixel) {
        if (dense_[pixel] != 0.0) entries_.push_back({pixel, dense_[pixel]});
        dense_[pixel] = 0.0;
      }
      row_end_.push_back(static_cast<int64_t>(entries_.size()));
      low = length, high = -1;
    }

    const Span span{static_cast<int64_t>(pixel_.size()), add_pixels(length),
                    static_cast<int64_t>(runs_.size())};
    spans_.push_back(span);
    transposed ? add_by_pixel(span, rows) : add_by_bin(rows);
  }

  // Appends the pixels that occur, ascending, and turns those of the entries into positions among them.
  int64_t add_pixels(int64_t length) {
    if (static_cast<int64_t>(position_.size()) < length) position_.resize(length, -1);
    const auto first = static_cast<int64_t>(pixel_.size());
    for (const Entry& entry : entries_) {
      if (position_[entry.pixel] < 0) {
        position_[entry.pixel] = 0;
        pixel_.push_back(entry.pixel);
      }
    }
    std::sort(pixel_.begin() + first, pixel_.end());
    const int64_t pixels = static_cast<int64_t>(pixel_.size()) - first;
    for (int64_t i = 0; i < pixels; ++i) position_[pixel_[first + i]] = i;
    for (Entry& entry : entries_) entry.pixel = position_[entry.pixel];
    for (int64_t i = 0; i < pixels; ++i) position_[pixel_[first + i]] = -1;
    return pixels;
  }

  void add_by_bin(int64_t rows) {
    int64_t begin = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t end = row_end_[row];
      Run run{0, 0, static_cast<int64_t>(weight_.size())};
      if (begin < end) {
        run.begin = entries_[begin].pixel;
        run.count = entries_[end - 1].pixel + 1 - run.begin;
      }
      runs_.push_back(run);
      weight_.resize(weight_.size() + run.count, T(0));
      for (; begin < end; ++begin) {
        weight_[run.weight + entries_[begin].pixel - run.begin] = static_cast<T>(entries_[begin].weight);
      }
    }
  }

  void add_by_pixel(const Span& span, int64_t rows) {
    const auto first_weight = static_cast<int64_t>(weight_.size());
    runs_.resize(runs_.size() + span.pixels, {0, 0, 0});
    Run* const runs = runs_.data() + span.run;
    int64_t begin = 0;
    for (int64_t row = 0; row < rows; ++row) {
      for (; begin < row_end_[row]; ++begin) {
        Run& run = runs[entries_[begin].pixel];
        if (run.count == 0) run.begin = row;
        run.count = row + 1 - run.begin;
      }
    }
    int64_t total = 0;
    for (int64_t i = 0; i < span.pixels; ++i) {
      runs[i].weight = first_weight + total;
      total += runs[i].count;
    }
    weight_.resize(first_weight + total, T(0));
    begin = 0;
    for (int64_t row = 0; row < rows; ++row) {
      for (; begin < row_end_[row]; ++begin) {
        const Run& run = runs[entries_[begin].pixel];
        weight_[run.weight + row - run.begin] = static_cast<T>(entries_[begin].weight);
      }
    }
  }

  std::vector<Span> spans_;  // two a box: y, x
  std::vector<int64_t> pixel_;
  std::vector<Run> runs_;
  std::vector<T> weight_;
  // Scratch of add_axis.
  std::vector<double> dense_;
  std::vector<int64_t> position_, row_end_;
  std::vector<Entry> entries_;
};

}  // namespace cfmvit::regions
