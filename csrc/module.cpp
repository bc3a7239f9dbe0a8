// cfmvit._C: loading it registers the schemas and the CPU ops; it tells what was built and carries no tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

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
            {"cuda", CFMVIT_CUDA_BUILD},
            {"cuda_architectures", CFMVIT_CUDA_ARCHITECTURES},
        };
      },
      "Versions and options of this build, as a dict of str.");
}
