// A reader of json that keeps no tree: it goes through a window of the text, which may end anywhere.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cfmvit {

// A json text of which a window is in memory. Functions return false where the text is broken or the window
// ends.
class JsonCursor {
 public:
  JsonCursor(const char* begin, const char* end, bool last) : at(begin), end_(end), last_(last) {}

  const char* at;

  bool ran_out() const { return at == end_ && !last_; }

  bool skip_space() {
    while (at < end_ && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) ++at;
    return at < end_;
  }

  bool at_number() const {
    return at < end_ && (*at == '-' || (*at >= '0' && *at <= '9') || *at == 'N' || *at == 'I');
  }

  void skip_mark() {  // of UTF-8
    if (end_ - at >= 3 && std::memcmp(at, "\xEF\xBB\xBF", 3) == 0) at += 3;
  }

  bool take(char wanted) {
    if (!skip_space() || *at != wanted) return false;
    ++at;
    return true;
  }

  // The text between the quotes; ``escaped`` tells that it holds a backslash.
  bool string(std::string_view& text, bool& escaped) {
    if (!take('"')) return false;
    const char* begin = at;
    escaped = false;
    while (at < end_) {
      const auto byte = static_cast<unsigned char>(*at);
      if (byte == '"') {
        text = {begin, static_cast<size_t>(at - begin)};
        ++at;
        return true;
      }
      if (byte < 0x20) return false;
      if (byte == '\\') {
        escaped = true;
        if (!escape()) return false;
      } else {
        ++at;
      }
    }
    return false;
  }

  // Python's json takes NaN, Infinity and -Infinity for numbers, too. ``integer``: neither fraction nor
  // exponent.
  bool number(double& value, bool& integer) {
    if (!skip_space()) return false;
    const char* begin = at;
    const bool negative = *at == '-';
    if (negative && ++at == end_) return false;
    if (*at == 'N' || *at == 'I') {
      integer = false;
      value = *at == 'N' ? NAN : negative ? -INFINITY : INFINITY;
      return !(negative && *at == 'N') && word(*at == 'N' ? "NaN" : "Infinity");
    }
    uint64_t digits = 0;
    int count = 0, exponent = 0;
    const char* first = at;
    const auto take_digits = [&](int step) {
      const char* start = at;
      for (; at < end_ && *at >= '0' && *at <= '9'; ++at) {
        digits =
            10 * digits + static_cast<uint64_t>(*at - '0');  // wraps from the 20th on, and is then not used
        if (digits != 0 || count != 0) ++count;
        exponent -= step;
      }
      return at > start;
    };
    if (!take_digits(0) || (*first == '0' && at - first > 1)) return false;
    integer = true;
    if (at < end_ && *at == '.') {
      ++at;
      integer = false;
      if (!take_digits(1)) return false;
    }
    if (at < end_ && (*at == 'e' || *at == 'E')) {
      ++at;
      integer = false;
      const bool down = at < end_ && *at == '-';
      if (at < end_ && (*at == '-' || *at == '+')) ++at;
      int power = 0;
      const char* start = at;
      for (; at < end_ && *at >= '0' && *at <= '9'; ++at) power = std::min(10 * power + (*at - '0'), 100000);
      if (at == start) return false;
      exponent += down ? -power : power;
    }
    if (at == end_ && !last_) return false;  // it may go on in the next window
    // Both are exact in double, so that one operation rounds once.
    if (count <= 19 && digits <= (uint64_t{1} << 53) && exponent >= -22 && exponent <= 22) {
      const auto whole = static_cast<double>(digits);
      value = exponent < 0 ? whole / kPowersOfTen[-exponent] : whole * kPowersOfTen[exponent];
      if (negative) value = -value;
      return true;
    }
    value = correctly_rounded(begin, count + exponent);
    return true;
  }

  // A whole number of 64 bits; any other is passed over and leaves ``fits`` false.
  bool integer(int64_t& value, bool& fits) {
    if (!skip_space()) return false;
    const char* begin = at;
    double rounded;
    fits = false;
    if (!at_number()) return skip();
    if (!number(rounded, fits)) return false;
    fits = fits && std::from_chars(begin, at, value).ec == std::errc();
    return true;
  }

  // Any value, of at most ``depth`` levels.
  bool skip(int depth = 200) {
    if (!skip_space() || depth == 0) return false;
    std::string_view text;
    bool flag;
    double value;
    switch (*at) {
      case '"':
        return string(text, flag);
      case '{':
      case '[':
        return skip_items(*at == '{', depth);
      case 't':
        return word("true");
      case 'f':
        return word("false");
      case 'n':
        return word("null");
      default:
        return number(value, flag);
    }
  }

 private:
  static constexpr double kPowersOfTen[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                            1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                            1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

  // ``magnitude``: of the number as a power of ten. No C function reads it: those go by the process's locale.
  double correctly_rounded(const char* begin, int magnitude) const {
    double value = 0;
    const auto done = std::from_chars(begin, at, value);
    if (done.ec == std::errc()) return value;
    const double beyond = magnitude > 0 ? HUGE_VAL : 0.0;
    return *begin == '-' ? -beyond : beyond;
  }

  bool escape() {
    if (end_ - at < 2) {
      at = end_;
      return false;
    }
    if (at[1] != 'u') {
      if (std::strchr("\"\\/bfnrt", at[1]) == nullptr || at[1] == 0) return false;
      at += 2;
      return true;
    }
    if (end_ - at < 6) {
      at = end_;
      return false;
    }
    for (int place = 2; place < 6; ++place) {
      const char digit = at[place];
      const bool hex = (digit >= '0' && digit <= '9') || ((digit | 32) >= 'a' && (digit | 32) <= 'f');
      if (!hex) return false;
    }
    at += 6;
    return true;
  }

  bool word(std::string_view wanted) {
    const auto left = static_cast<size_t>(end_ - at);
    const std::string_view here(at, std::min(left, wanted.size()));
    if (here != wanted.substr(0, here.size())) return false;
    at += here.size();
    return here.size() == wanted.size();
  }

  bool skip_items(bool object, int depth) {
    const char close = object ? '}' : ']';
    ++at;
    if (!skip_space()) return false;
    if (*at == close) return ++at, true;
    std::string_view key;
    bool escaped;
    while (true) {
      if (object && (!string(key, escaped) || !take(':'))) return false;
      if (!skip(depth - 1) || !skip_space()) return false;
      if (*at == close) return ++at, true;
      if (*at != ',') return false;
      ++at;
    }
  }

  const char* end_;
  bool last_;
};

// Where the text comes from, a window of it at a time.
class JsonSource {
 public:
  using Read =
      std::function<int64_t(char* into, int64_t size)>;  // returns less than ``size`` at the end only

  explicit JsonSource(Read read) : read_(std::move(read)) { read_on(0); }

  JsonCursor cursor() const { return {window_.data(), window_.data() + filled_, done_}; }
  bool done() const { return done_; }
  int64_t offset(const char* at) const { return start_ + (at - window_.data()); }

  // Keeps what begins at ``from``, and reads on behind it.
  void read_on(int64_t from_offset) {
    const int64_t keep = start_ + filled_ - from_offset;
    if (keep > 0) std::memmove(window_.data(), window_.data() + filled_ - keep, static_cast<size_t>(keep));
    start_ = from_offset;
    const int64_t wanted = std::max(kBlock, keep);  // doubled for an entry that is longer than the window
    window_.resize(static_cast<size_t>(keep + wanted));
    const int64_t got = read_(window_.data() + keep, wanted);
    filled_ = keep + got;
    done_ = got < wanted;
  }

 private:
  static constexpr int64_t kBlock = int64_t{4} << 20;
  Read read_;
  int64_t start_ = 0, filled_ = 0;
  std::vector<char> window_;
  bool done_ = false;
};

}  // namespace cfmvit
