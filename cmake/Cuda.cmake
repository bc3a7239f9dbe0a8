# The CUDA kernels: a second shared object, built where there is a compiler for the CUDA of torch. Sets CFMVIT_CUDA_BUILD,
# "built with ..." or "not built: why", and CFMVIT_CUDA_ARCHITECTURES.
set(CFMVIT_CUDA_BUILD "")
set(CFMVIT_CUDA_ARCHITECTURES "")
include(CheckLanguage)

if(CFMVIT_CUDA STREQUAL "OFF")
  set(CFMVIT_CUDA_BUILD "not built: CFMVIT_CUDA=OFF")
elseif(TORCH_CUDA_VERSION STREQUAL "none")
  set(CFMVIT_CUDA_BUILD "not built: torch ${TORCH_VERSION} is a build without CUDA")
else()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    # "8.0;9.0a 12.0+PTX" -> "80-real;90a-real;120"
    string(REGEX REPLACE "[ ,]+" ";" WANTED "$ENV{TORCH_CUDA_ARCH_LIST}")
    foreach(ARCH IN LISTS WANTED)
      string(REPLACE "." "" NUMBER "${ARCH}")
      if(NUMBER MATCHES "\\+PTX$")
        string(REPLACE "+PTX" "" NUMBER "${NUMBER}")
      else()
        string(APPEND NUMBER "-real")
      endif()
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${NUMBER})
    endforeach()
  elseif(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 100-real 120)  # the last with PTX, for what comes later
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(CFMVIT_CUDA_BUILD "not built: no CUDA compiler found")
  else()
    enable_language(CUDA)
    string(REGEX MATCH "^[0-9]+" TORCH_CUDA_MAJOR "${TORCH_CUDA_VERSION}")
    string(REGEX MATCH "^[0-9]+" NVCC_MAJOR "${CMAKE_CUDA_COMPILER_VERSION}")
    if(NOT NVCC_MAJOR STREQUAL TORCH_CUDA_MAJOR)
      set(CFMVIT_CUDA_BUILD
        "not built: nvcc ${CMAKE_CUDA_COMPILER_VERSION} is not of CUDA ${TORCH_CUDA_MAJOR}, which torch uses")
    endif()
  endif()
endif()

if(CFMVIT_CUDA_BUILD)
  if(CFMVIT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "CFMVIT_CUDA=ON, but the CUDA kernels are ${CFMVIT_CUDA_BUILD}. Install a CUDA toolkit of the major "
      "version of torch's (torch: ${TORCH_CUDA_VERSION}), or point CUDACXX at its nvcc.")
  endif()
  return()
endif()

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(_cuda MODULE ${CUDA_SOURCES})
set_target_properties(_cuda PROPERTIES PREFIX "" CUDA_STANDARD 20 CUDA_RUNTIME_LIBRARY Shared)
target_include_directories(_cuda PRIVATE csrc)
target_compile_definitions(_cuda PRIVATE USE_CUDA)  # opens torch's CUDA functions in its C headers
# Registers in memory are slow: a warning, and an error with CMAKE_COMPILE_WARNING_AS_ERROR.
target_compile_options(_cuda PRIVATE -Xptxas=--warn-on-spills -Xcompiler=-Wall,-Wextra)
target_link_libraries(_cuda PRIVATE torch_stable torch_cuda)
install(TARGETS _cuda DESTINATION cfmvit)
set(CFMVIT_CUDA_BUILD "built with nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
string(REPLACE ";" " " CFMVIT_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
