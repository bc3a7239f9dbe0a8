#include "cpu/interrupt.h"

#include <pybind11/pybind11.h>

#include "torch/checks.h"

namespace cfmvit {

bool Interrupt::requested() {
  if (std::this_thread::get_id() == caller_ && !requested_.load(std::memory_order_relaxed) &&
      Clock::now() >= next_) {
    run_handlers();
  }
  return requested_.load(std::memory_order_relaxed);
}

void Interrupt::run_handlers() {
  const PyGILState_STATE state = PyGILState_Ensure();
  if (PyErr_CheckSignals() != 0) {
    requested_ = true;
    // PyTorch makes a RuntimeError of whatever leaves an op. What the handler raised is raised by the
    // interpreter at its next step.
    auto* const raised = new pybind11::error_already_set();
    const auto raise = [](void* error) {
      const std::unique_ptr<pybind11::error_already_set> again(
          static_cast<pybind11::error_already_set*>(error));
      again->restore();
      return -1;
    };
    if (Py_AddPendingCall(raise, raised) != 0) delete raised;
  }
  PyGILState_Release(state);
  next_ = Clock::now() + std::chrono::milliseconds(100);
}

void Interrupt::check(const char* op) const { CFMVIT_CHECK(!requested_, op, ": interrupted by a signal"); }

}  // namespace cfmvit
