// What the programs of the emulation share: they read jobs (a kernel's name, seeds, named arrays), call the
// launchers of csrc/kernels, and write the outputs. Python's side is emulator.py, where each .cpp here is a
// fixture of its name. A kernel is added by
//
//   KERNEL(name) { ... job["tokens"], job.output<S>("out", {B, K, D}) ... }
#pragma once

#include <array>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/portable.cuh"
#include "plain/half.h"
#include "plain/index.h"
#include "plain/views.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace cfmvit::emulation {

using Sizes = std::vector<int64_t>;

// A strided array in an allocation of its own that ends where the array ends; `lead` bytes before it are out
// of bounds too.
struct Array {
  std::string type;
  Sizes sizes, strides;
  size_t bytes = 0, lead = 0;
  std::shared_ptr<char> memory;

  void allocate(const std::string& name) {
    memory.reset(static_cast<char*>(std::malloc(lead + bytes)), [](char* p) {
      forget(p);
      std::free(p);
    });
    watch(memory.get(), lead + bytes, name);
#ifdef __SANITIZE_ADDRESS__
    ASAN_POISON_MEMORY_REGION(memory.get(), lead);
#endif
  }
  template <typename T>
  T* data() const {
    return reinterpret_cast<T*>(memory.get() + lead);
  }
  int64_t size(size_t i) const { return sizes.at(i); }
  int64_t stride(size_t i) const { return strides.at(i); }
  // Of (B, N, D).
  template <typename S>
  Rows<const S> rows() const {
    return {data<const S>(), stride(0), stride(1)};
  }
};

template <typename T>
const char* type_name();
#define CFMVIT_TYPE(T, name)          \
  template <>                         \
  inline const char* type_name<T>() { \
    return name;                      \
  }
CFMVIT_TYPE(float, "float32")
CFMVIT_TYPE(double, "float64")
CFMVIT_TYPE(Half, "float16")
CFMVIT_TYPE(BFloat16, "bfloat16")
CFMVIT_TYPE(int32_t, "int32")
CFMVIT_TYPE(int64_t, "int64")
CFMVIT_TYPE(uint8_t, "uint8")
CFMVIT_TYPE(bool, "bool")
#undef CFMVIT_TYPE

inline int64_t count_of(const Sizes& sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return count;
}

// One launch's inputs and outputs.
class Job {
 public:
  std::string kernel;
  std::map<std::string, Array> inputs, outputs;
  int poison = 0;

  bool has(const std::string& name) const { return inputs.count(name) != 0; }
  const Array& operator[](const std::string& name) const {
    if (!has(name)) throw std::runtime_error(kernel + " is given no " + name);
    return inputs.at(name);
  }
  // Null where there is no such array.
  template <typename T>
  const T* data(const std::string& name) const {
    return has(name) ? inputs.at(name).data<const T>() : nullptr;
  }
  int64_t integer(const std::string& name) const { return *(*this)[name].data<int64_t>(); }
  double real(const std::string& name) const { return *(*this)[name].data<double>(); }
  Index index(const std::string& name) const {
    const Array& x = (*this)[name];
    return {x.data<void>(), x.type == "int64", x.stride(0), x.stride(1)};
  }

  // Filled with what depends on the seed: what a kernel leaves unwritten differs from run to run.
  template <typename T>
  T* output(const std::string& name, const Sizes& sizes) {
    Array& x = outputs[name];
    x.type = type_name<T>();
    x.sizes = sizes;
    x.bytes = sizeof(T) * count_of(sizes);
    x.allocate(name);
    std::memset(x.memory.get(), poison, x.bytes);
    return x.data<T>();
  }
  // Workspace: kept as long as the outputs, not compared.
  template <typename T>
  T* scratch(int64_t count) {
    return output<T>("scratch " + std::to_string(outputs.size()), {count});
  }
};

inline std::map<std::string, std::function<void(Job&)>>& kernels_by_name() {
  static std::map<std::string, std::function<void(Job&)>> all;
  return all;
}

#define KERNEL(name)                                                                                       \
  static void run_##name(::cfmvit::emulation::Job& job);                                                   \
  static const bool has_##name = ::cfmvit::emulation::kernels_by_name().emplace(#name, run_##name).second; \
  static void run_##name([[maybe_unused]] ::cfmvit::emulation::Job& job)

// Calls run(S{}) with the element type of x.
template <typename Run>
void with_floating(const Array& x, const Run& run) {
  if (x.type == "float32") return run(float{});
  if (x.type == "float64") return run(double{});
  if (x.type == "float16") return run(Half{});
  if (x.type == "bfloat16") return run(BFloat16{});
  throw std::runtime_error("not a floating type: " + x.type);
}

inline Array read_array(std::istream& in, std::string& name) {
  Array x;
  size_t dims = 0;
  in >> name >> x.type >> x.lead >> x.bytes >> dims;
  x.sizes.resize(dims);
  x.strides.resize(dims);
  for (auto& size : x.sizes) in >> size;
  for (auto& stride : x.strides) in >> stride;
  in.ignore(1);
  x.allocate(name);
  in.read(x.data<char>(), static_cast<std::streamsize>(x.bytes));
  return x;
}

// jobs: a line "kernel arrays seeds..." and the arrays of each job; results: the arrays of each job and seed.
inline int run_jobs(const char* jobs, const char* results) {
  std::ifstream in(jobs, std::ios::binary);
  std::ofstream out(results, std::ios::binary);
  size_t arrays = 0, seeds = 0;
  Job job;
  while (in >> job.kernel >> arrays >> seeds) {
    std::vector<unsigned> values(seeds);
    for (auto& value : values) in >> value;
    job.inputs.clear();
    for (size_t i = 0; i < arrays; ++i) {
      std::string name;
      Array x = read_array(in, name);
      job.inputs[name] = x;
    }
    if (!kernels_by_name().count(job.kernel)) throw std::runtime_error("no kernel named " + job.kernel);
    for (const unsigned value : values) {
      seed(value);
      job.poison = static_cast<int>(0xcb + value) & 0xff;
      job.outputs.clear();
      kernels_by_name().at(job.kernel)(job);
      std::erase_if(job.outputs, [](const auto& x) { return x.first.starts_with("scratch "); });
      out << job.outputs.size() << "\n";
      for (const auto& [name, x] : job.outputs) {
        out << name << " " << x.type << " " << x.sizes.size();
        for (const int64_t size : x.sizes) out << " " << size;
        out << "\n";
        out.write(x.data<char>(), static_cast<std::streamsize>(x.bytes));
      }
    }
  }
  return out.good() ? 0 : 4;
}

}  // namespace cfmvit::emulation

int main(int, char** arguments) {
  try {
    return cfmvit::emulation::run_jobs(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "emulation: %s\n", error.what());
    return 5;
  }
}
