// Views of tensors for the loops: a tensor's accessors cross the C interface at each call.
#pragma once

#include "plain/views.h"
#include "torch/stable_abi.h"

namespace cfmvit {

template <typename S>
Rows<S> view(const Tensor& x) {
  return {data<S>(x), x.stride(0), x.stride(1)};
}

template <typename S>
Pixels<S> pixels_of(const Tensor& x) {
  return {data<S>(x), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// Which entry names each token of each row, -1 for none: with it tokens are read in memory order. token_of(b,
// j): the token that entry j of row b names.
template <typename TokenOf>
std::vector<int64_t> entries_by_token(int64_t batch, int64_t num_tokens, int64_t entries,
                                      const TokenOf& token_of) {
  auto found = filled<int64_t>({batch, num_tokens}, -1);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t j = 0; j < entries; ++j) found[b * num_tokens + token_of(b, j)] = j;
  }
  return found;
}

// The accumulation type of x.
inline ScalarType acc_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace cfmvit
