// The launchers of the masking family.
#include "kernels/masking.cuh"

#include "cases.h"
#include "kernels/masking_order.cuh"
#include "kernels/masking_restore.cuh"

namespace cfmvit::emulation {

template <typename S>
Rows<S> dense(S* data, int64_t rows, int64_t width) {
  return {data, rows * width, width};
}

// The index `name`, and `second` if it is given.
kernels::Sources sources(const Job& job, const char* name, const char* second) {
  kernels::Sources out = kernels::one_source(job.index(name), job[name].size(1));
  if (job.has(second)) out.index[1] = job.index(second), out.entries[1] = job[second].size(1);
  return out;
}

kernels::InverseEntries* inverse_of(Job& job, const kernels::Sources& from, int64_t batch,
                                    int64_t num_tokens) {
  auto* inverse = reinterpret_cast<kernels::InverseEntries*>(job.scratch<int64_t>(batch * num_tokens));
  kernels::invert(from, inverse, batch, num_tokens, nullptr);
  return inverse;
}

KERNEL(random_masking) {
  const Array& noise = job["noise"];
  const int64_t batch = noise.size(0), count = noise.size(1), kept = job.integer("kept");
  int64_t* keep = job.output<int64_t>("keep", {batch, kept});
  int64_t* masked = job.output<int64_t>("masked", {batch, count - kept});
  int64_t* restore = job.output<int64_t>("restore", {batch, count});
  with_floating(noise, [&](auto zero) {
    using S = decltype(zero);
    kernels::random_masking<S>(noise.data<const S>(), noise.stride(0), noise.stride(1), keep, masked, restore,
                               batch, count, kept, nullptr);
  });
}

// By one index, or by two as split_tokens does.
KERNEL(gather_tokens) {
  const Array& tokens = job["tokens"];
  const int64_t batch = tokens.size(0), num_tokens = tokens.size(1), width = tokens.size(2);
  const kernels::Sources from = sources(job, "index", "second");
  with_floating(tokens, [&](auto zero) {
    using S = decltype(zero);
    const auto out = [&](const char* name, int64_t rows) {
      return dense(job.output<S>(name, {batch, rows, width}), rows, width);
    };
    kernels::gather_tokens<S>({tokens.rows<S>(),
                               from,
                               job.data<S>("pos_embed"),
                               job.data<bool>("keep_pos"),
                               {out("out", from.entries[0]), out("out2", from.entries[1])},
                               batch,
                               num_tokens,
                               width},
                              nullptr);
  });
}

KERNEL(gather_tokens_backward) {
  const Array& grad = job["grad"];
  const int64_t batch = grad.size(0), width = grad.size(2), num_tokens = job.integer("num_tokens");
  const kernels::Sources from = sources(job, "index", "second");
  const kernels::InverseEntries* inverse = inverse_of(job, from, batch, num_tokens);
  with_floating(grad, [&](auto zero) {
    using S = decltype(zero);
    const Rows<const S> first = grad.rows<S>(), second = job.has("grad2") ? job["grad2"].rows<S>() : first;
    const int64_t samples = job.integer("samples"), partials = kernels::ceil_div(batch, samples);
    S* out = job.output<S>("grad_tokens", {batch, num_tokens, width});
    acc_t<S>* partial =
        job.integer("needs_pos") ? job.scratch<acc_t<S>>(partials * num_tokens * width) : nullptr;
    kernels::scatter_tokens<S>({{first, second},
                                from,
                                inverse,
                                job.data<bool>("keep_pos"),
                                out,
                                partial,
                                batch,
                                num_tokens,
                                width,
                                samples},
                               nullptr);
    if (!partial) return;
    kernels::column_sums<acc_t<S>, S>(partial, num_tokens * width,
                                      job.output<S>("grad_pos", {num_tokens, width}), partials, partials,
                                      num_tokens * width, nullptr);
  });
}

KERNEL(restore_tokens) {
  const Array &visible = job["visible"], &restore = job["restore"];
  const int64_t batch = visible.size(0), kept = visible.size(1), width = visible.size(2),
                num_tokens = restore.size(1);
  with_floating(visible, [&](auto zero) {
    using S = decltype(zero);
    kernels::restore_tokens<S>(
        {visible.rows<S>(), job.data<S>("mask_token"), job.index("restore"), job.data<S>("pos_embed"),
         dense(job.output<S>("out", {batch, num_tokens, width}), num_tokens, width), batch, kept, num_tokens,
         width},
        nullptr);
  });
}

KERNEL(restore_tokens_backward) {
  const Array& grad = job["grad"];
  const int64_t batch = grad.size(0), num_tokens = grad.size(1), width = grad.size(2),
                kept = job.integer("kept");
  const kernels::Sources from = sources(job, "restore", "");
  const kernels::InverseEntries* inverse = inverse_of(job, from, batch, kept);
  with_floating(grad, [&](auto zero) {
    using S = decltype(zero);
    const int64_t samples = job.integer("samples"), partials = kernels::ceil_div(batch, samples);
    acc_t<S>* masks = job.scratch<acc_t<S>>(partials * num_tokens * width);
    acc_t<S>* partial =
        job.integer("needs_pos") ? job.scratch<acc_t<S>>(partials * num_tokens * width) : nullptr;
    kernels::restore_tokens_backward<S>(
        {grad.rows<S>(), from, inverse, job.output<S>("grad_visible", {batch, kept, width}), masks, partial,
         batch, kept, num_tokens, width, samples},
        nullptr);
    kernels::column_sums<acc_t<S>, S>(masks, width, job.output<S>("grad_mask", {width}),
                                      partials * num_tokens, partials * num_tokens, width, nullptr);
    if (!partial) return;
    kernels::column_sums<acc_t<S>, S>(partial, num_tokens * width,
                                      job.output<S>("grad_pos", {num_tokens, width}), partials, partials,
                                      num_tokens * width, nullptr);
  });
}

}  // namespace cfmvit::emulation
