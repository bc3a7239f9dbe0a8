// How an op is registered for a backend. What holds for every op, whatever its schema, is checked here before
// its function runs: torch.ops.cfmvit.* may be called directly.
#pragma once

#include <stdexcept>

#include "torch/checks.h"

namespace cfmvit {

// Checks the tensors among the arguments of a call: they are on one device, and products of their sizes fit.
class CallCheck {
 public:
  explicit CallCheck(const char* op) : op_(op) {}

  void operator()(const Tensor& x) {
    product(x.sizes());
    if (!device_) device_ = x.device();
    CFMVIT_CHECK(x.device() == *device_, op_, ": all tensors must be on one device, got some on ",
                 device_text(*device_), " and some on ", device_text(x.device()));
  }
  void operator()(const std::optional<Tensor>& x) {
    if (x) (*this)(*x);
  }
  void operator()(const std::vector<Tensor>& tensors) {
    for (const Tensor& x : tensors) (*this)(x);
  }
  template <typename Other>
  void operator()(const Other&) {}

 private:
  static std::string device_text(const torch::stable::Device& device) {
    if (device.is_cpu()) return "cpu";
    const std::string type = device.is_cuda() ? "cuda" : "device type " + std::to_string(int(device.type()));
    return type + ":" + std::to_string(device.index());
  }

  const char* op_;
  std::optional<torch::stable::Device> device_;
};

template <typename Op, auto kFunction>
struct CheckedCall;

template <typename Op, typename Result, typename... Args, Result (*kFunction)(Args...)>
struct CheckedCall<Op, kFunction> {
  static Result run(Args... args) {
    try {
      CallCheck check(Op::name());
      (check(args), ...);
      return kFunction(std::move(args)...);
    } catch (const std::length_error& error) {  // of product(), which knows no op
      CFMVIT_CHECK(false, Op::name(), ": ", error.what());
    }
  }
};

// m.impl(#op, ...), with the checks above before the function.
#define CFMVIT_IMPL(library, op, function)                                     \
  do {                                                                         \
    struct Op {                                                                \
      static const char* name() { return #op; }                                \
    };                                                                         \
    library.impl(#op, TORCH_BOX((&::cfmvit::CheckedCall<Op, function>::run))); \
  } while (false)

}  // namespace cfmvit
