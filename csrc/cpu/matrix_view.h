// A borrowed view of a matrix.
#pragma once

#include <algorithm>
#include <cstdint>

namespace cfmvit {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The i-th of the blocks of `step` that cover [0, size).
inline Range block(int64_t i, int64_t step, int64_t size) {
  return {i * step, std::min((i + 1) * step, size)};
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
struct Matrix {  // element (i, j) at data[i * row + j * col]
  T* data;
  int64_t rows, cols, row, col = 1;

  Matrix t() const { return {data, cols, rows, col, row}; }
  Matrix window(Range r, Range c) const {
    return {data + r.begin * row + c.begin * col, r.size(), c.size(), row, col};
  }
  Matrix window(Range r) const { return window(r, {0, cols}); }
  operator Matrix<const T>() const { return {data, rows, cols, row, col}; }
};

}  // namespace cfmvit
