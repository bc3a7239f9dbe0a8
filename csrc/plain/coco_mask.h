// Masks as COCO's json has them, checked as they are read: what decodes them may run without end on damaged
// ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "plain/json_cursor.h"

namespace cfmvit {

// A mask's runs, compressed as pycocotools does it (COCO API, rleFrString), read to its area and box.
class CompressedMask {
 public:
  double area = 0;
  double box[4] = {0, 0, 0, 0};  // x, y, w, h

  // Return whether the runs fill height x width pixels; ``counts`` is the text as json has it, of which "\\"
  // is the one escape.
  bool read(std::string_view counts, int64_t height, int64_t width) {
    const int64_t pixels = height * width;
    int64_t earlier[2] = {0, 0};  // the runs last but one and last
    int64_t done = 0, count = 0, last_column = 0, run = 0;
    int64_t left = width, top = height, right = 0, bottom = 0;
    int shift = 0;
    area = 0;
    for (size_t place = 0; place < counts.size(); ++place) {
      if (counts[place] == '\\') {
        if (counts[++place] != '\\') return false;  // a backslash is never a string's last
      }
      const int code = static_cast<unsigned char>(counts[place]) - 48;
      if (code < 0 || code > 63 || shift > 55) return false;
      run |= static_cast<int64_t>(code & 31) << shift;
      shift += 5;
      if (code & 32) continue;
      if (code & 16) run -= int64_t{1} << shift;
      if (count > 2) run += earlier[count % 2];
      if (run < 0 || run > pixels - done) return false;
      earlier[count % 2] = run;
      done += run;
      if (count % 2) area += static_cast<double>(run);
      // The corners of runs, as rleToBbox goes through them.
      const int64_t corner = done - count % 2, y = corner % height, column = corner / height;
      if (count % 2 == 0) {
        last_column = column;
      } else if (last_column < column) {
        top = 0;
        bottom = height - 1;
      }
      pending_[count % 2] = {column, y};
      if (count % 2) {
        for (const auto& [c, r] : pending_) {
          left = std::min(left, c);
          right = std::max(right, c);
          top = std::min(top, r);
          bottom = std::max(bottom, r);
        }
      }
      ++count;
      run = 0;
      shift = 0;
    }
    if (shift != 0 || count == 0 || done != pixels) return false;
    if (count > 1) {
      box[0] = static_cast<double>(left);
      box[1] = static_cast<double>(top);
      box[2] = static_cast<double>(right - left + 1);
      box[3] = static_cast<double>(bottom - top + 1);
    } else {
      std::fill(box, box + 4, 0.0);
    }
    return true;
  }

 private:
  struct Corner {
    int64_t column, row;
  };
  Corner pending_[2];
};

inline bool read_sizes(JsonCursor& text, int64_t* size) {
  for (int place = 0; place < 2; ++place) {
    bool fits;
    if (!text.take(place ? ',' : '[') || !text.integer(size[place], fits)) return false;
    if (!fits || size[place] > INT32_MAX) return false;
  }
  return text.take(']');
}

inline bool fill(JsonCursor text, int64_t pixels) {
  int64_t left = pixels;
  for (char before = '['; text.take(before); before = ',') {
    int64_t run;
    bool fits;
    if (!text.integer(run, fits) || !fits || run < 0 || run > left) return false;
    left -= run;
  }
  return text.take(']') && left == 0;
}

// Whether ``json`` is {"size": [height, width], "counts": ...} of runs that fill the image; where its size is
// not known (0), any.
// ``mask`` gets what a compressed one comes to; ``listed`` tells whether plain lists of runs are allowed.
inline bool read_runs(std::string_view json, int64_t height, int64_t width, bool listed,
                      CompressedMask& mask) {
  JsonCursor text(json.data(), json.data() + json.size(), true);
  if (!text.take('{')) return false;
  std::string_view key, counts;
  const char* list = nullptr;
  int64_t size[2] = {0, 0};
  bool escaped;
  while (text.string(key, escaped) && !escaped && text.take(':') && text.skip_space()) {
    if (key == "counts" && *text.at == '"') {
      if (!text.string(counts, escaped)) return false;
      list = nullptr;
    } else if (key == "counts") {
      list = text.at;
      if (*text.at != '[' || !text.skip()) return false;
    } else if (key == "size") {
      if (!read_sizes(text, size)) return false;
    } else if (!text.skip()) {
      return false;
    }
    if (!text.take(',')) break;
  }
  if (height != 0 && (size[0] != height || size[1] != width)) return false;
  if (size[0] <= 0 || size[1] <= 0) return false;
  if (list == nullptr) return mask.read(counts, size[0], size[1]);
  return listed && fill(JsonCursor(list, json.data() + json.size(), true), size[0] * size[1]);
}

// Whether ``json`` is a list of polygons, [x1, y1, x2, y2, ...] of coordinates below 1e6: pycocotools walks
// along each edge in steps of less than a pixel, so that a far corner would take all memory.
inline bool are_polygons(std::string_view json) {
  JsonCursor text(json.data(), json.data() + json.size(), true);
  if (!text.take('[')) return false;
  do {
    int64_t count = 0;
    if (!text.take('[')) return false;
    do {
      double value;
      bool integer;
      if (!text.skip_space() || !text.at_number() || !text.number(value, integer)) return false;
      if (!(std::abs(value) < 1e6)) return false;
      ++count;
    } while (text.take(','));
    if (!text.take(']') || count < 4 || count % 2) return false;
  } while (text.take(','));
  return text.take(']');
}

}  // namespace cfmvit
