// The instruction sets that kernels choose among. A kernel compiled for one of them may be called only where
// it is at hand.
#pragma once

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CFMVIT_X86 1
#endif

namespace cfmvit {

enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512BFloat16 };

// The best of this processor, but no better than ATEN_CPU_CAPABILITY, PyTorch's own variable, allows.
inline InstructionSet find_instruction_set() {
#ifdef CFMVIT_X86
  const char* const wanted = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view limit = wanted ? wanted : "";
  if (limit == "default" || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return InstructionSet::kBaseline;
  }
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (limit == "avx2" || !has_avx512) return InstructionSet::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? InstructionSet::kAvx512BFloat16 : InstructionSet::kAvx512;
#else
  return InstructionSet::kBaseline;
#endif
}

inline const InstructionSet kInstructionSet = find_instruction_set();
inline const bool kHasAvx2 = kInstructionSet >= InstructionSet::kAvx2;
inline const bool kHasAvx512 = kInstructionSet >= InstructionSet::kAvx512;
inline const bool kHasAvx512BFloat16 = kInstructionSet >= InstructionSet::kAvx512BFloat16;

}  // namespace cfmvit
