// Products of sizes, checked in one place: sizes may come from callers, as those of a tensor without elements
// do, which may be anything.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace cfmvit {

constexpr int64_t kMostElements = int64_t{1} << 59;  // their bytes can be counted, too

// (2, 3, 4)
template <typename Sizes>
std::string text(const Sizes& sizes) {
  std::string out = "(";
  for (const int64_t size : sizes) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + (sizes.size() == 1 ? ",)" : ")");
}

// The product of sizes. It is bounded with zeros left out, so that the product of any of them is, too.
template <typename Sizes>
int64_t product(const Sizes& sizes) {
  int64_t out = 1;
  bool empty = false;
  for (const int64_t size : sizes) {
    if (size < 0 || size > kMostElements / out) {
      throw std::length_error("sizes must not be negative, nor their product beyond 2**59, got " +
                              text(sizes));
    }
    empty = empty || size == 0;
    out *= size == 0 ? 1 : size;
  }
  return empty ? 0 : out;
}
inline int64_t product(std::initializer_list<int64_t> sizes) {
  return product<std::initializer_list<int64_t>>(sizes);
}

}  // namespace cfmvit
