// Comes before a .cu file of csrc/cuda: the library gets another name, its ops the CPU's tensors. Torch's
// headers go first, which have names of their own to keep.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#define cfmvit cfmvit_emulated
#define CUDA CPU
