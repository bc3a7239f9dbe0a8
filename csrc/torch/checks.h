// One validation per kind of argument, shared by the ops. Messages name the op, the argument, the rule and
// the value seen; the Python functions say the same, as ValueError or TypeError.
#pragma once

#include <string>

#include "plain/index.h"
#include "torch/stable_abi.h"

namespace cfmvit {

#define CFMVIT_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

inline std::string shape_text(const Tensor& x) { return text(x.sizes()); }

// Checks that `index`, (batch, K), is int32 or int64 with entries in 0..count-1. A GPU's values are not
// looked at: that would wait for the device, so its kernels test each entry themselves.
inline Index checked_index(const char* op, const char* name, const Tensor& index, int64_t batch,
                           int64_t count) {
  CFMVIT_CHECK(index.dim() == 2, op, ": ", name, " must have shape (B, K), got ", shape_text(index));
  const ScalarType type = index.scalar_type();
  CFMVIT_CHECK(type == ScalarType::Long || type == ScalarType::Int, op, ": ", name,
               " must be int32 or int64, got ", torch::headeronly::toString(type));
  CFMVIT_CHECK(index.size(0) == batch, op, ": ", name, " must have one row a sample, ", batch, " rows, got ",
               index.size(0));
  const Index view{index.data_ptr(), type == ScalarType::Long, index.stride(0), index.stride(1)};
  if (!index.is_cpu()) return view;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t j = 0; j < index.size(1); ++j) {
      const int64_t value = view(b, j);
      CFMVIT_CHECK(value >= 0 && value < count, op, ": ", name, " must lie in 0..", count - 1, ", got ",
                   value);
    }
  }
  return view;
}

// checked_index of entries that name each of `count` tokens at most once in each row.
inline Index checked_distinct_index(const char* op, const char* name, const Tensor& index, int64_t batch,
                                    int64_t count) {
  const Index view = checked_index(op, name, index, batch, count);
  if (!index.is_cpu()) return view;
  std::vector<int64_t> seen(count, -1);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t j = 0; j < index.size(1); ++j) {
      const int64_t value = view(b, j);
      CFMVIT_CHECK(seen[value] != b, op, ": ", name, " must not repeat an entry, got ", value,
                   " twice in row ", b);
      seen[value] = b;
    }
  }
  return view;
}

inline void check_shape(const char* op, const char* name, const Tensor& x,
                        const std::vector<int64_t>& shape) {
  bool same = x.dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; same && d < x.dim(); ++d) same = x.size(d) == shape[d];
  CFMVIT_CHECK(same, op, ": ", name, " must have shape ", text(shape), ", got ", shape_text(x));
}

inline bool is_floating(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline void check_type(const char* op, const char* name, const Tensor& x, const Tensor& wanted) {
  CFMVIT_CHECK(x.scalar_type() == wanted.scalar_type(), op, ": ", name, " must have dtype ",
               torch::headeronly::toString(wanted.scalar_type()), ", got ",
               torch::headeronly::toString(x.scalar_type()));
}

}  // namespace cfmvit
