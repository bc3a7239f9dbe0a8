# The CUDA kernels: a second shared object, built where there is a compiler for the CUDA of torch. Sets CFMVIT_CUDA_BUILD,
# "built with ..." or "not built: why", and CFMVIT_CUDA_ARCHITECTURES.
include("${CMAKE_CURRENT_LIST_DIR}/CudaArchitectures.cmake")
set(CFMVIT_CUDA_BUILD "")
set(CFMVIT_CUDA_ARCHITECTURES "")

# Sets NVCC and ARCHITECTURES, or WHY_NOT. Nothing in here may end the build.
function(find_cuda)
  if(CFMVIT_CUDA STREQUAL "OFF")
    set(WHY_NOT "CFMVIT_CUDA=OFF")
    return(PROPAGATE WHY_NOT)
  elseif(TORCH_CUDA_VERSION STREQUAL "none")
    set(WHY_NOT "torch ${TORCH_VERSION} is a build without CUDA")
    return(PROPAGATE WHY_NOT)
  endif()
  string(REGEX MATCH "^[0-9]+" major "${TORCH_CUDA_VERSION}")
  set(remedy "install the CUDA ${major} toolkit, or set CUDACXX to its nvcc")

  # Where users say that it is, else where torch looks for it.
  if(CMAKE_CUDA_COMPILER OR NOT "$ENV{CUDACXX}" STREQUAL "")
    set(NVCC $ENV{CUDACXX})
    if(CMAKE_CUDA_COMPILER)
      set(NVCC ${CMAKE_CUDA_COMPILER})
    endif()
  else()
    find_program(NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin NO_CACHE)
  endif()
  if(NOT NVCC)
    set(WHY_NOT "torch uses CUDA ${TORCH_CUDA_VERSION}, but there is no nvcc: ${remedy}")
    return(PROPAGATE WHY_NOT)
  endif()
  execute_process(COMMAND "${NVCC}" --version OUTPUT_VARIABLE text ERROR_VARIABLE text RESULT_VARIABLE failed)
  if(failed OR NOT text MATCHES "release ([0-9]+)\\.([0-9]+)")
    set(WHY_NOT "${NVCC} is no nvcc that runs: ${remedy}")
    return(PROPAGATE WHY_NOT)
  endif()
  set(version ${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
  if(NOT CMAKE_MATCH_1 STREQUAL major)
    set(WHY_NOT "nvcc is of CUDA ${version}, torch uses CUDA ${TORCH_CUDA_VERSION}: ${remedy}")
    return(PROPAGATE WHY_NOT)
  endif()

  choose_cuda_architectures("${NVCC}")
  if(WHY_NOT)
    return(PROPAGATE WHY_NOT)
  elseif(DROPPED)
    list(JOIN DROPPED " " dropped)
    message(STATUS "cfmvit: not compiled for ${dropped}: older than 8.0, or unknown to nvcc ${version}")
  endif()
  if(version VERSION_GREATER TORCH_CUDA_VERSION)
    message(STATUS "cfmvit: nvcc ${version} is newer than torch's CUDA ${TORCH_CUDA_VERSION}: a GPU that none of the "
      "architectures names needs a driver of CUDA ${version}")
  endif()

  set(folder "${CMAKE_BINARY_DIR}/cuda_probe")
  file(REMOVE_RECURSE "${folder}")
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/cuda_probe" -B "${folder}" -G "${CMAKE_GENERATOR}"
      "-DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}" "-DCMAKE_CUDA_COMPILER=${NVCC}"
      "-DCMAKE_CUDA_ARCHITECTURES=${ARCHITECTURES}" "-DCMAKE_CUDA_HOST_COMPILER=${CMAKE_CUDA_HOST_COMPILER}"
    OUTPUT_VARIABLE text ERROR_VARIABLE text RESULT_VARIABLE failed)
  if(NOT failed)
    execute_process(COMMAND "${CMAKE_COMMAND}" --build "${folder}"
      OUTPUT_VARIABLE text ERROR_VARIABLE text RESULT_VARIABLE failed)
  endif()
  if(failed)
    message(STATUS "cfmvit: nvcc fails at a small program:\n${text}")
    set(WHY_NOT "nvcc ${version} fails at a small program (see the build's output): ${remedy}")
    return(PROPAGATE WHY_NOT)
  endif()
  return(PROPAGATE NVCC ARCHITECTURES)
endfunction()

find_cuda()
if(WHY_NOT)
  string(REGEX REPLACE "[\\\";\n]" " " WHY_NOT "${WHY_NOT}")  # it becomes a string of C++
  set(CFMVIT_CUDA_BUILD "not built: ${WHY_NOT}")
  if(CFMVIT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "CFMVIT_CUDA=ON, but the CUDA kernels are ${CFMVIT_CUDA_BUILD}")
  endif()
  return()
endif()

unset(ENV{CUDAARCHS})  # read above, as empty lists and torch's names are not by CMake
set(CMAKE_CUDA_COMPILER "${NVCC}")
set(CMAKE_CUDA_ARCHITECTURES ${ARCHITECTURES})
enable_language(CUDA)
file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(_cuda MODULE ${CUDA_SOURCES})
set_target_properties(_cuda PROPERTIES PREFIX "" CUDA_STANDARD 20 CUDA_RUNTIME_LIBRARY Shared)
target_include_directories(_cuda PRIVATE csrc)
target_compile_definitions(_cuda PRIVATE USE_CUDA)  # opens torch's CUDA functions in its C headers
# Registers in memory are slow: a warning, and an error with CMAKE_COMPILE_WARNING_AS_ERROR.
list(JOIN PLAIN_PATHS "," plain_paths)
target_compile_options(_cuda PRIVATE --threads=0)  # its architectures side by side: the last file keeps more than one core busy
target_compile_options(_cuda PRIVATE -Xptxas=--warn-on-spills -Xcompiler=-Wall,-Wextra "-Xcompiler=${plain_paths}")
target_link_libraries(_cuda PRIVATE torch_stable torch_cuda)
install(TARGETS _cuda DESTINATION cfmvit)
set(CFMVIT_CUDA_BUILD "built with nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
list(JOIN ARCHITECTURES " " CFMVIT_CUDA_ARCHITECTURES)
