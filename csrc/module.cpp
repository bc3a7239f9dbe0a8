// cfmvit._C: loading it registers the schemas and the CPU ops; it tells what was built and carries no tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>

#include "cpu/capability.h"
#include "cpu/interrupt.h"

namespace {

std::string instruction_set() {
  switch (cfmvit::kInstructionSet) {
    case cfmvit::InstructionSet::kAvx2:
      return "AVX2";
    case cfmvit::InstructionSet::kAvx512:
      return "AVX-512";
    case cfmvit::InstructionSet::kAvx512BFloat16:
      return "AVX-512 with products of bfloat16";
    default:
      return "the compiler's own";
  }
}

// PyTorch makes a RuntimeError of whatever leaves an op, so what a signal's handler raised is set aside, and
// raised again by the interpreter at its next step.
bool signal_handlers_raise() {
  const pybind11::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() == 0) return false;
  auto raised = std::make_unique<pybind11::error_already_set>();
  const auto raise = [](void* error) {
    std::unique_ptr<pybind11::error_already_set>(static_cast<pybind11::error_already_set*>(error))->restore();
    return -1;
  };
  if (Py_AddPendingCall(raise, raised.get()) == 0) raised.release();
  return true;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  cfmvit::Interrupt::handlers_raise = signal_handlers_raise;
  m.doc() = "Native core of cfmvit: importing it registers torch.ops.cfmvit.*";
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"version", CFMVIT_VERSION},
            {"compiler", __VERSION__},
            {"built_with_torch", CFMVIT_BUILT_WITH_TORCH},
            {"loads_under_torch", ">=2.11 (LibTorch stable ABI)"},
            {"instruction_set", instruction_set()},
            {"cuda", CFMVIT_CUDA_BUILD},
            {"cuda_architectures", CFMVIT_CUDA_ARCHITECTURES},
        };
      },
      "Versions and options of this build, as a dict of str.");
}
