// The launchers of the masking family.
#include "kernels/masking.cuh"

#include "cases.h"

namespace cfmvit::emulation {

template <typename S>
kernels::Rows<const S> rows_of(const Array& x) {
  return {x.data<const S>(), x.stride(0), x.stride(1)};
}

KERNEL(gather_tokens) {
  const Array &tokens = job["tokens"], &index = job["index"];
  with_floating(tokens, [&](auto zero) {
    using S = decltype(zero);
    const int64_t batch = tokens.size(0), places = tokens.size(1), width = tokens.size(2),
                  entries = index.size(1);
    kernels::gather_tokens<S>(rows_of<S>(tokens), job.index("index"), job.data<S>("pos_embed"),
                              job.data<bool>("keep_pos"), job.output<S>("out", {batch, entries, width}),
                              batch, places, entries, width, nullptr);
  });
}

KERNEL(gather_tokens_backward) {
  const Array& grad = job["grad"];
  with_floating(grad, [&](auto zero) {
    using S = decltype(zero);
    const int64_t batch = grad.size(0), entries = grad.size(1), width = grad.size(2),
                  places = job.integer("num_tokens");
    S* grad_tokens = job.output<S>("grad_tokens", {batch, places, width});
    kernels::gather_tokens_backward<S>(rows_of<S>(grad), job.index("index"), grad_tokens, batch, places,
                                       entries, width, nullptr);
    kernels::sum_positions<S>(grad_tokens, job.data<bool>("keep_pos"),
                              job.scratch<Sum<S>>(kernels::position_parts(batch) * places * width),
                              job.output<S>("grad_pos", {places, width}), batch, places * width, nullptr);
  });
}

}  // namespace cfmvit::emulation
