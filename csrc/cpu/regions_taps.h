// From a box to the places of a map that it reads, and their weights: the sparse matrices of
// regions_axis.h. Knows nothing of torch.
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
  const int64_t* place;  // (places,) ascending
  int64_t places;
  const Run* runs;  // by bin, or by place where the table is transposed
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
  // roi: image number, x1, y1, x2, y2. `transposed` gives runs by place, for the backward.
  template <typename Coordinate>
  void add(const Coordinate* roi, Coordinate scale, int64_t height, int64_t width, const Sampling& sampling,
           bool transposed) {
    add_axis(samples_of(roi, scale, sampling, 0), height, sampling.bins_y, sampling.merge, transposed);
    add_axis(samples_of(roi, scale, sampling, 1), width, sampling.bins_x, sampling.merge, transposed);
  }

  Box<T> box(int64_t i, int64_t number) const { return {number, axis(2 * i), axis(2 * i + 1)}; }

 private:
  struct Span {
    int64_t place, places, run;
  };
  struct Entry {
    int64_t place;
    double weight;
  };

  Axis<T> axis(int64_t i) const {
    const Span& span = spans_[i];
    return {place_.data() + span.place, span.places, runs_.data() + span.run, weight_.data()};
  }

  // Appends the matrix of one axis.
  template <typename Coordinate>
  void add_axis(const Samples<Coordinate>& samples, int64_t length, int64_t bins, bool merge,
                bool transposed) {
    const int64_t rows = merge ? 1 : bins;
    if (static_cast<int64_t>(dense_.size()) < length) dense_.resize(length, 0.0);
    entries_.clear();
    row_end_.clear();
    int64_t low = length, high = -1;  // places of this row of the matrix
    for (int64_t bin = 0; bin < bins; ++bin) {
      for (int64_t i = first_inside(samples, bin, length); i < samples.count; ++i) {
        const Coordinate at = samples.position(bin, i);
        if (!inside(at, length)) break;
        const auto [place, fraction] = bilinear(at, length);
        dense_[place] += (1.0 - fraction) * samples.share;
        if (fraction > 0.0) dense_[place + 1] += fraction * samples.share;
        low = std::min(low, place);
        high = std::max(high, place + (fraction > 0.0));
      }
      if (merge && bin + 1 < bins) continue;
      for (int64_t place = low; place <= high; ++place) {
        if (dense_[place] != 0.0) entries_.push_back({place, dense_[place]});
        dense_[place] = 0.0;
      }
      row_end_.push_back(static_cast<int64_t>(entries_.size()));
      low = length, high = -1;
    }

    const Span span{static_cast<int64_t>(place_.size()), add_places(length),
                    static_cast<int64_t>(runs_.size())};
    spans_.push_back(span);
    transposed ? add_by_place(span, rows) : add_by_bin(rows);
  }

  // Appends the places that occur, ascending, and turns those of the entries into positions among them.
  int64_t add_places(int64_t length) {
    if (static_cast<int64_t>(position_.size()) < length) position_.resize(length, -1);
    const auto first = static_cast<int64_t>(place_.size());
    for (const Entry& entry : entries_) {
      if (position_[entry.place] < 0) {
        position_[entry.place] = 0;
        place_.push_back(entry.place);
      }
    }
    std::sort(place_.begin() + first, place_.end());
    const int64_t places = static_cast<int64_t>(place_.size()) - first;
    for (int64_t i = 0; i < places; ++i) position_[place_[first + i]] = i;
    for (Entry& entry : entries_) entry.place = position_[entry.place];
    for (int64_t i = 0; i < places; ++i) position_[place_[first + i]] = -1;
    return places;
  }

  void add_by_bin(int64_t rows) {
    int64_t begin = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t end = row_end_[row];
      Run run{0, 0, static_cast<int64_t>(weight_.size())};
      if (begin < end) {
        run.begin = entries_[begin].place;
        run.count = entries_[end - 1].place + 1 - run.begin;
      }
      runs_.push_back(run);
      weight_.resize(weight_.size() + run.count, T(0));
      for (; begin < end; ++begin) {
        weight_[run.weight + entries_[begin].place - run.begin] = static_cast<T>(entries_[begin].weight);
      }
    }
  }

  void add_by_place(const Span& span, int64_t rows) {
    const auto first_weight = static_cast<int64_t>(weight_.size());
    runs_.resize(runs_.size() + span.places, {0, 0, 0});
    Run* const runs = runs_.data() + span.run;
    int64_t begin = 0;
    for (int64_t row = 0; row < rows; ++row) {
      for (; begin < row_end_[row]; ++begin) {
        Run& run = runs[entries_[begin].place];
        if (run.count == 0) run.begin = row;
        run.count = row + 1 - run.begin;
      }
    }
    int64_t total = 0;
    for (int64_t i = 0; i < span.places; ++i) {
      runs[i].weight = first_weight + total;
      total += runs[i].count;
    }
    weight_.resize(first_weight + total, T(0));
    begin = 0;
    for (int64_t row = 0; row < rows; ++row) {
      for (; begin < row_end_[row]; ++begin) {
        const Run& run = runs[entries_[begin].place];
        weight_[run.weight + row - run.begin] = static_cast<T>(entries_[begin].weight);
      }
    }
  }

  std::vector<Span> spans_;  // two a box: y, x
  std::vector<int64_t> place_;
  std::vector<Run> runs_;
  std::vector<T> weight_;
  // Scratch of add_axis.
  std::vector<double> dense_;
  std::vector<int64_t> position_, row_end_;
  std::vector<Entry> entries_;
};

}  // namespace cfmvit::regions
