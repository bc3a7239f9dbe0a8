// cfmvit._C: loading it registers the schemas and the CPU ops; it tells what was built and carries no tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "cpu/capability.h"

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

}  // namespace

PYBIND11_MODULE(_C, m) {
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
