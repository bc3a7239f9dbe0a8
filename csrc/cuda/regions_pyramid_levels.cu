// The levels of boxes in a feature pyramid, on a GPU: one launch, where torch's operators take ten.
#include "cuda/launch.h"
#include "kernels/regions_pyramid_levels.cuh"
#include "torch/regions_checks.h"
#include "torch/registration.h"

namespace cfmvit {

// rois (R, 5) -> (R,)
Tensor pyramid_levels_cuda(Tensor rois, int64_t finest, int64_t count, double canonical_scale,
                           double canonical_level) {
  check_levels_of("pyramid_levels", rois, count, canonical_scale);
  rois = rows_of(rois);
  const Tensor levels = like(rois, {rois.size(0)}, ScalarType::Long);
  if (rois.size(0) == 0) return levels;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const regions::Levels<T> level{data<const T>(rois), rois.stride(0),    finest, count,
                                   T(canonical_scale),  T(canonical_level)};
    on_device(rois, [&](cudaStream_t stream) {
      kernels::for_each(rois.size(0), kernels::PyramidLevels<T>{level, data<int64_t>(levels)}, stream);
    });
  };
  rois.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return levels;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) { CFMVIT_IMPL(m, pyramid_levels, &cfmvit::pyramid_levels_cuda); }
