// cfmvit._coco: columns of COCO files as arrays. A module of its own that does not know torch: to load that
// takes more memory than an evaluation.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "plain/coco_entries.h"

namespace cfmvit {
namespace {

using Ids = pybind11::array_t<int64_t, pybind11::array::c_style | pybind11::array::forcecast>;

// An array that owns the values; nothing is copied.
template <class T>
pybind11::array_t<T> as_array(std::vector<T> values, pybind11::ssize_t columns = 0) {
  auto kept = std::make_unique<std::vector<T>>(std::move(values));
  const auto size = static_cast<pybind11::ssize_t>(kept->size());
  std::vector<pybind11::ssize_t> shape{size};
  if (columns) shape = {size / columns, columns};
  T* data = kept->data();
  const pybind11::capsule owner(kept.release(),
                                [](void* held) { delete static_cast<std::vector<T>*>(held); });
  return pybind11::array_t<T>(std::move(shape), data, owner);
}

// ``source``: the content of a file, or its name.
pybind11::dict read_entries(const std::variant<pybind11::bytes, std::string>& source, const Ids& images,
                            const Ids& heights, const Ids& widths, const Ids& categories, bool truth,
                            bool boxes, bool masks) {
  const KnownIds known{images.data(), heights.data(),    widths.data(),
                       images.size(), categories.data(), categories.size()};
  const auto* name = std::get_if<std::string>(&source);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(name ? std::fopen(name->c_str(), "rb") : nullptr,
                                                             [](std::FILE* f) { return std::fclose(f); });
  if (name && !file) {
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, name->c_str());
    throw pybind11::error_already_set();
  }
  const std::string_view content = name ? std::string_view() : std::string_view(std::get<0>(source));
  auto size = static_cast<int64_t>(content.size());
  if (file && std::fseek(file.get(), 0, SEEK_END) == 0) {
    size = std::ftell(file.get());
    std::rewind(file.get());
  }
  size_t done = 0;
  const auto read = [&](char* into, int64_t wanted) -> int64_t {
    if (file) return static_cast<int64_t>(std::fread(into, 1, static_cast<size_t>(wanted), file.get()));
    const size_t got = content.copy(into, static_cast<size_t>(wanted), done);
    done += got;
    return static_cast<int64_t>(got);
  };
  bool interrupted = false;
  const auto go_on = [&interrupted] {
    const pybind11::gil_scoped_acquire gil;
    interrupted = PyErr_CheckSignals() != 0;
    return !interrupted;
  };
  Columns found;
  {
    const pybind11::gil_scoped_release released;
    JsonSource text(read);
    found = EntryReader(known, {truth, boxes, masks}).read(text, size, go_on);
  }
  if (interrupted) throw pybind11::error_already_set();
  if (file && std::ferror(file.get())) {
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, name->c_str());
    throw pybind11::error_already_set();
  }
  pybind11::dict columns;
  columns["rows"] = as_array(std::move(found.rows), 7);
  columns["offsets"] = as_array(std::move(found.offsets));
  columns["crowd"] = as_array(std::move(found.crowd));
  columns["mask_areas"] = as_array(std::move(found.mask_areas));
  columns["mask_spans"] = as_array(std::move(found.mask_spans), 2);
  columns["boxless"] = as_array(std::move(found.boxless));
  columns["boxless_areas"] = as_array(std::move(found.boxless_areas));
  columns["odd"] = as_array(std::move(found.odd));
  columns["broken_at"] = found.broken_at;
  return columns;
}

// Where the values of a json object's members lie, or None where the text is no json object.
pybind11::object json_members(const pybind11::bytes& content) {
  const std::string_view whole(content);
  std::vector<std::pair<std::string_view, std::string_view>> members;
  if (!read_members(whole, members)) return pybind11::none();
  pybind11::dict spans;
  for (const auto& [key, value] : members) {
    const auto name = pybind11::reinterpret_steal<pybind11::str>(
        PyUnicode_DecodeUTF8(key.data(), static_cast<Py_ssize_t>(key.size()), "replace"));
    spans[name] = pybind11::make_tuple(value.data() - whole.data(), value.size());
  }
  return spans;
}

}  // namespace

PYBIND11_MODULE(_coco, m) {
  using pybind11::literals::operator""_a;
  m.doc() = "Reads COCO's lists of annotations and detections.";
  m.def("read_coco_entries", read_entries, "source"_a, "images"_a, "heights"_a, "widths"_a, "categories"_a,
        "truth"_a, "boxes"_a, "masks"_a,
        "Columns of a json list of annotations or detections; see plain/coco_entries.h.");
  m.def("json_members", json_members, "content"_a,
        "Where the values of a json object's members begin, and their lengths.");
}

}  // namespace cfmvit
