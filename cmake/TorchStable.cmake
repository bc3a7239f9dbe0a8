# An interface target for the LibTorch stable ABI. find_package(Torch) is not used: it demands a whole CUDA toolkit and
# rewrites the compiler flags, and the stable ABI needs only headers and two libraries.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__, torch.version.cuda or 'none', sep=';')"
  OUTPUT_VARIABLE TORCH_FACTS OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_VARIABLE TORCH_ERROR RESULT_VARIABLE TORCH_FAILED)
if(TORCH_FAILED)
  message(FATAL_ERROR "torch can't be imported by ${Python_EXECUTABLE}; install torch>=2.11 first, or build with isolation "
    "(pip install . without --no-build-isolation).\n${TORCH_ERROR}")
endif()
list(GET TORCH_FACTS 0 TORCH_ROOT)
list(GET TORCH_FACTS 1 TORCH_VERSION)
list(GET TORCH_FACTS 2 TORCH_CUDA_VERSION)
if(TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "cfmvit needs torch>=2.11 (LibTorch stable ABI), found ${TORCH_VERSION}")
endif()
add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE "${TORCH_ROOT}/include")
# 2.11: the oldest torch that the binaries load under.
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
target_link_directories(torch_stable INTERFACE "${TORCH_ROOT}/lib")
target_link_libraries(torch_stable INTERFACE torch torch_cpu c10)
