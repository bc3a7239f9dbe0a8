// The entries of a COCO file, its annotations or detection results, read as a stream into columns: LVIS's
// validation set has six million detections. Entries that are not plainly right are left to the caller, by
// number.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "plain/coco_mask.h"
#include "plain/json_cursor.h"

namespace cfmvit {

struct KnownIds {
  const int64_t* images;   // (I,) ascending
  const int64_t* heights;  // (I,) 0 where not known
  const int64_t* widths;   // (I,)
  int64_t image_count;
  const int64_t* categories;  // (K,) ascending
  int64_t category_count;
};

struct Wanted {
  bool truth;  // annotations, which have an area where results have a score, and always a box
  bool boxes;  // of results; one that is absent is taken from the mask
  bool masks;
};

struct Columns {
  std::vector<double>
      rows;  // (n, 7) image, x, y, w, h, score or area, category; ids by their place in KnownIds
  std::vector<int64_t> offsets;       // (n,) of an entry's first byte
  std::vector<uint8_t> crowd;         // (n,) of annotations
  std::vector<double> mask_areas;     // (n,) pixels, of results; where masks are wanted, as are
  std::vector<int64_t> mask_spans;    // (n, 2) first byte and length of the segmentation's json
  std::vector<int64_t> boxless;       // results without a box
  std::vector<double> boxless_areas;  // pixels of their masks
  std::vector<int64_t> odd;           // entries of which a value is absent, of another type, or not allowed
  int64_t broken_at = -1;             // where the text stops being a json list
};

class EntryReader {
 public:
  EntryReader(const KnownIds& known, const Wanted& wanted) : known_(known), wanted_(wanted) {}

  // ``size``: of the whole text in bytes, a guess. ``between`` is called between windows; false ends the
  // reading.
  Columns read(JsonSource& source, int64_t size, const std::function<bool()>& between) {
    JsonCursor text = source.cursor();
    text.skip_mark();
    if (!text.take('[')) return broken(source, text);
    bool first = true;
    while (true) {
      const int64_t begin = source.offset(text.at);
      bool closed = false;
      if (next(text, source, first, closed)) {
        if (closed) break;
        first = false;
        continue;
      }
      if (!text.ran_out()) return broken(source, text);
      if (!between()) return std::move(columns_);
      reserve(size, begin);
      source.read_on(begin);
      text = source.cursor();
    }
    while (!text.skip_space() && !source.done()) {
      source.read_on(source.offset(text.at));
      text = source.cursor();
    }
    return text.skip_space() ? broken(source, text) : std::move(columns_);
  }

 private:
  struct Entry {
    int64_t image = -1, category = -1, crowd = 0;
    double value = NAN, box[4] = {0, 0, 0, 0};
    bool has_box = false, good_box = false;
    bool escapes = false;  // in a key, which then may be one of those that are read
    bool ignored = false;  // has an `ignore` that is not 0
    std::string_view mask;
  };

  Columns broken(const JsonSource& source, const JsonCursor& text) {
    columns_.broken_at = source.offset(text.at);
    return std::move(columns_);
  }

  // For as many as there will be if the rest is like what has been read: growing would hold most of them
  // twice.
  void reserve(int64_t size, int64_t done) {
    if (columns_.rows.empty() || reserved_) return;
    reserved_ = true;
    const double growth = 1.02 * static_cast<double>(size) / static_cast<double>(done);
    const auto entries = static_cast<size_t>(growth * static_cast<double>(columns_.offsets.size())) + 16;
    columns_.rows.reserve(7 * entries);
    columns_.offsets.reserve(entries);
    if (wanted_.masks) {
      columns_.mask_areas.reserve(entries);
      columns_.mask_spans.reserve(2 * entries);
    }
  }

  bool next(JsonCursor& text, const JsonSource& source, bool first, bool& closed) {
    if (!text.skip_space()) return false;
    closed = *text.at == ']';
    if (closed) return ++text.at, true;
    if ((!first && !text.take(',')) || !text.skip_space()) return false;
    const char* begin = text.at;
    Entry entry;
    if (*text.at == '{' ? !read_entry(text, entry) : !text.skip()) return false;
    keep(entry, source, begin);
    return true;
  }

  bool read_entry(JsonCursor& text, Entry& entry) {
    ++text.at;
    if (!text.skip_space()) return false;
    if (*text.at == '}') return ++text.at, true;
    while (true) {
      std::string_view key;
      bool escaped;
      if (!text.string(key, escaped) || !text.take(':') || !text.skip_space()) return false;
      entry.escapes |= escaped;
      if (!read_value(text, key, entry) || !text.skip_space()) return false;
      if (*text.at == '}') return ++text.at, true;
      if (*text.at != ',') return false;
      ++text.at;
    }
  }

  bool read_value(JsonCursor& text, std::string_view key, Entry& entry) {
    if (key == "image_id") return read_id(text, known_.images, known_.image_count, last_image_, entry.image);
    if (key == "category_id")
      return read_id(text, known_.categories, known_.category_count, last_category_, entry.category);
    if (key == "bbox") return read_box(text, entry);
    if (key == (wanted_.truth ? "area" : "score")) {
      bool integer;
      entry.value = NAN;
      return text.at_number() ? text.number(entry.value, integer) : text.skip();
    }
    if (key == "iscrowd") {
      bool fits;
      if (!text.integer(entry.crowd, fits)) return false;
      if (!fits) entry.crowd = -1;
      return true;
    }
    const char* begin = text.at;
    if (!text.skip()) return false;
    const std::string_view value(begin, static_cast<size_t>(text.at - begin));
    if (key == "segmentation") entry.mask = value;
    if (key == "ignore") entry.ignored = value != "0";
    return true;
  }

  // The place of an id among those that are known, or -1. Entries come by image: the last one is tried first.
  static bool read_id(JsonCursor& text, const int64_t* ids, int64_t count, int64_t& last, int64_t& place) {
    int64_t id;
    bool fits;
    place = -1;
    if (!text.integer(id, fits)) return false;
    if (!fits) return true;
    if (last >= count || ids[last] != id) {
      const int64_t* found = std::lower_bound(ids, ids + count, id);
      if (found == ids + count || *found != id) return true;
      last = found - ids;
    }
    place = last;
    return true;
  }

  static bool read_box(JsonCursor& text, Entry& entry) {
    const char* begin = text.at;
    entry.has_box = true;
    entry.good_box = read_four(text, entry.box) && entry.box[2] >= 0 && entry.box[3] >= 0;
    if (entry.good_box) return true;
    if (text.ran_out()) return false;
    text.at = begin;
    return text.skip();
  }

  static bool read_four(JsonCursor& text, double* into) {
    bool integer;
    for (int place = 0; place < 4; ++place) {
      if (!text.take(place ? ',' : '[') || !text.skip_space() || !text.at_number()) return false;
      if (!text.number(into[place], integer) || !std::isfinite(into[place])) return false;
    }
    return text.take(']');
  }

  void keep(const Entry& entry, const JsonSource& source, const char* begin) {
    CompressedMask mask;
    const auto number = static_cast<int64_t>(columns_.offsets.size());
    const bool known = entry.image >= 0 && entry.category >= 0 && !entry.escapes;
    if (!known || !(wanted_.truth ? is_annotation(entry) : is_result(entry, mask)))
      columns_.odd.push_back(number);
    const double* box = entry.has_box ? entry.box : mask.box;
    columns_.rows.insert(columns_.rows.end(), {static_cast<double>(entry.image), box[0], box[1], box[2],
                                               box[3], entry.value, static_cast<double>(entry.category)});
    columns_.offsets.push_back(source.offset(begin));
    if (wanted_.truth) {
      columns_.crowd.push_back(entry.crowd == 1);
    } else if (!entry.has_box) {
      columns_.boxless.push_back(number);
      columns_.boxless_areas.push_back(mask.area);
    }
    if (wanted_.masks) {
      columns_.mask_areas.push_back(mask.area);
      const int64_t at = entry.mask.empty() ? 0 : source.offset(entry.mask.data());
      columns_.mask_spans.insert(columns_.mask_spans.end(), {at, static_cast<int64_t>(entry.mask.size())});
    }
  }

  bool is_result(const Entry& entry, CompressedMask& mask) const {
    if (!std::isfinite(entry.value) || (wanted_.boxes && entry.has_box && !entry.good_box)) return false;
    if (!wanted_.masks && entry.has_box) return true;
    return read_runs(entry.mask, known_.heights[entry.image], known_.widths[entry.image], false, mask);
  }

  bool is_annotation(const Entry& entry) const {
    if (!entry.good_box || !(entry.value >= 0 && std::isfinite(entry.value))) return false;
    if ((entry.crowd != 0 && entry.crowd != 1) || entry.ignored) return false;
    if (!wanted_.masks) return true;
    CompressedMask mask;
    return entry.mask.substr(0, 1) == "{"
               ? read_runs(entry.mask, known_.heights[entry.image], known_.widths[entry.image], true, mask)
               : are_polygons(entry.mask);
  }

  const KnownIds known_;
  const Wanted wanted_;
  Columns columns_;
  int64_t last_image_ = 0, last_category_ = 0;
  bool reserved_ = false;
};

// The members of a json object that is whole in memory: names and where their values lie; false where it is
// no json object.
inline bool read_members(std::string_view whole,
                         std::vector<std::pair<std::string_view, std::string_view>>& members) {
  JsonCursor text(whole.data(), whole.data() + whole.size(), true);
  text.skip_mark();
  if (!text.take('{')) return false;
  if (!text.take('}')) {
    do {
      std::string_view key;
      bool escaped;
      if (!text.string(key, escaped) || !text.take(':') || !text.skip_space()) return false;
      const char* begin = text.at;
      if (!text.skip()) return false;
      members.emplace_back(key, std::string_view(begin, static_cast<size_t>(text.at - begin)));
    } while (text.take(','));
    if (!text.take('}')) return false;
  }
  return !text.skip_space();
}

}  // namespace cfmvit
