// The launchers of the reconstruction family.
#include "cases.h"
#include "kernels/reconstruction_linear.cuh"
#include "kernels/reconstruction_pixels.cuh"

namespace cfmvit::emulation {

// The index of the job; without data: all rows.
kernels::Sources sources(const Job& job, int64_t rows) {
  if (!job.has("index")) return kernels::one_source({}, rows);
  return kernels::one_source(job.index("index"), job["index"].size(1));
}

// Null without an index.
kernels::InverseEntries* inverse_of(Job& job, const kernels::Sources& from, int64_t batch,
                                    int64_t num_tokens) {
  if (!job.has("index")) return nullptr;
  auto* inverse = reinterpret_cast<kernels::InverseEntries*>(job.scratch<int64_t>(batch * num_tokens));
  kernels::invert(from, inverse, batch, num_tokens, nullptr);
  return inverse;
}

// Calls run(S{}, T{}) with the types of pred and target: of one type, or one of them float32.
template <typename Run>
void with_pair(const Job& job, const Run& run) {
  const std::string& type = job["target"].type;
  with_floating(job["pred"], [&](auto zero) {
    using S = decltype(zero);
    if (type == job["pred"].type) return run(zero, zero);
    if constexpr (std::is_same_v<S, float>) {
      if (type == "bfloat16") return run(zero, BFloat16{});
      if (type == "float16") return run(zero, Half{});
    } else if constexpr (!std::is_same_v<S, double>) {
      if (type == "float32") return run(zero, float{});
    }
    throw std::runtime_error("no kernel for " + job["pred"].type + " and " + type);
  });
}

template <typename S, typename T>
kernels::Pairs<S, T> pairs_of(const Job& job) {
  return {job["pred"].rows<S>(), job["target"].rows<T>(), job["pred"].size(2), job.real("eps")};
}

KERNEL(masked_cosine_loss) {
  const int64_t batch = job["pred"].size(0), num_tokens = job["pred"].size(1);
  const kernels::Sources from = sources(job, num_tokens);
  with_pair(job, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    kernels::cosine_losses<S, T>(
        {pairs_of<S, T>(job), from.index[0], job.output<acc_t<S>>("losses", {batch, from.entries[0]}), batch,
         num_tokens, from.entries[0]},
        nullptr);
  });
}

KERNEL(masked_cosine_loss_backward) {
  const Array& pred = job["pred"];
  const int64_t batch = pred.size(0), num_tokens = pred.size(1);
  const kernels::Sources from = sources(job, num_tokens);
  const kernels::InverseEntries* inverse = inverse_of(job, from, batch, num_tokens);
  with_pair(job, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    kernels::cosine_gradient<S, T>(
        {pairs_of<S, T>(job), from, inverse, job.data<acc_t<S>>("grad"),
         job.output<S>("grad_pred", pred.sizes), batch, num_tokens, from.entries[0]},
        nullptr);
  });
}

// As for two chunks of a projection, the second of `rest` rows; sums are added to what is there.
KERNEL(projection_gradient) {
  const Array& pred = job["pred"];
  const int64_t rows = pred.size(1), width = pred.size(2), rest = job.integer("rest"),
                blocks = kernels::ceil_div(rows, kernels::kRowsOfBlock);
  with_pair(job, [&](auto p, auto t) {
    using S = decltype(p);
    using T = decltype(t);
    S* out = job.output<S>("grad_pred", pred.sizes);
    std::memcpy(out, pred.data<S>(), pred.bytes);
    acc_t<S>*losses = job.output<acc_t<S>>("losses", {1, rows}),
    *partial = job.output<acc_t<S>>("partial", {blocks, width});
    std::fill_n(partial, blocks * width, acc_t<S>(0));
    kernels::Pairs<S, T> pairs = pairs_of<S, T>(job);
    for (const auto& [first, count] : {std::pair{int64_t{0}, rows - rest}, std::pair{rows - rest, rest}}) {
      pairs.pred = {out + first * width, 0, width};
      pairs.target.data = job["target"].data<T>() + first * pairs.target.token;
      kernels::projection_gradient<S, T>(
          {pairs, job.data<acc_t<S>>("grad") + first, out + first * width, losses + first, partial, count},
          nullptr);
    }
  });
}

template <typename S>
kernels::PatchPairs<S> patches_of(const Job& job) {
  const Array& images = job["images"];
  const int64_t size = job.integer("patch_size");
  const PatchGrid grid{images.size(1), images.size(2) / size, images.size(3) / size, size};
  return {
      job["pred"].rows<S>(),
      {images.data<const acc_t<S>>(), images.stride(0), images.stride(1), images.stride(2), images.stride(3)},
      grid,
      job["pred"].size(1) == grid.count(),
      job.integer("normalize") != 0};
}

KERNEL(masked_pixel_loss) {
  const Array &pred = job["pred"], &index = job["index"];
  with_floating(pred, [&](auto zero) {
    using S = decltype(zero);
    kernels::pixel_losses<S>({patches_of<S>(job), job.index("index"),
                              job.output<acc_t<S>>("losses", index.sizes), index.size(0), index.size(1)},
                             nullptr);
  });
}

KERNEL(masked_pixel_loss_backward) {
  const Array& pred = job["pred"];
  const int64_t batch = pred.size(0), rows = pred.size(1);
  const kernels::Sources from = sources(job, rows);
  with_floating(pred, [&](auto zero) {
    using S = decltype(zero);
    const kernels::PatchPairs<S> pairs = patches_of<S>(job);
    const kernels::InverseEntries* inverse = pairs.all ? inverse_of(job, from, batch, rows) : nullptr;
    kernels::pixel_gradient<S>({pairs, from, inverse, job.data<acc_t<S>>("grad"),
                                job.output<S>("grad_pred", pred.sizes), batch, rows, from.entries[0]},
                               nullptr);
  });
}

}  // namespace cfmvit::emulation
