// The launchers that cut patches out of images.
#include "kernels/masking_patches.cuh"

#include "cases.h"

namespace cfmvit::emulation {

PatchGrid grid_of(const Sizes& images, int64_t patch) {
  return {images.at(1), images.at(2) / patch, images.at(3) / patch, patch};
}

Index index_or_all(const Job& job) {
  return job.has("index") ? job.index("index") : Index{nullptr, false, 0, 0};
}

template <typename In, typename Out>
void gather(Job& job) {
  const Array& images = job["images"];
  const PatchGrid grid = grid_of(images.sizes, job.integer("patch_size"));
  const int64_t batch = images.size(0), kept = job.has("index") ? job["index"].size(1) : grid.count();
  const Pixels<const In> pixels{images.data<const In>(), images.stride(0), images.stride(1), images.stride(2),
                                images.stride(3)};
  const Statistics statistics{job.data<double>("mean"), job.data<double>("std"), images.type == "uint8"};
  kernels::gather_patches<In, Out>({pixels, index_or_all(job), statistics, grid,
                                    job.output<Out>("out", {batch, kept, grid.width()}), batch, kept},
                                   nullptr);
}

// To the dtype of `like`, from bytes, float32 or that dtype.
KERNEL(gather_patches) {
  const std::string& type = job["images"].type;
  with_floating(job["like"], [&](auto zero) {
    using Out = decltype(zero);
    if (type == "uint8") return gather<uint8_t, Out>(job);
    if (type == "float32") return gather<float, Out>(job);
    gather<Out, Out>(job);
  });
}

KERNEL(gather_patches_backward) {
  const Array& grad = job["grad"];
  const Sizes sizes{grad.size(0), job.integer("channels"), job.integer("height"), job.integer("width")};
  const PatchGrid grid = grid_of(sizes, job.integer("patch_size"));
  const kernels::Sources from = kernels::one_source(index_or_all(job), grad.size(1));
  kernels::InverseEntries* inverse = nullptr;
  if (job.has("index")) {
    inverse = reinterpret_cast<kernels::InverseEntries*>(job.scratch<int64_t>(sizes[0] * grid.count()));
    kernels::invert(from, inverse, sizes[0], grid.count(), nullptr);
  }
  with_floating(grad, [&](auto zero) {
    using S = decltype(zero);
    kernels::gather_patches_backward<S>({grad.data<const S>(),
                                         from,
                                         inverse,
                                         {nullptr, job.data<double>("std"), false},
                                         grid,
                                         job.output<S>("grad_images", sizes),
                                         sizes[0],
                                         grad.size(1)},
                                        nullptr);
  });
}

}  // namespace cfmvit::emulation
