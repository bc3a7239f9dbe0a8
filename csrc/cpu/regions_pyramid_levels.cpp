// The levels of boxes in a feature pyramid, on the CPU.
#include "plain/regions_pyramid_levels.h"

#include "torch/regions_checks.h"
#include "torch/registration.h"

namespace cfmvit {

// rois (R, 5) -> (R,)
Tensor pyramid_levels_cpu(Tensor rois, int64_t finest, int64_t count, double canonical_scale,
                          double canonical_level) {
  check_levels_of("pyramid_levels", rois, count, canonical_scale);
  rois = rows_of(rois);
  const Tensor levels = like(rois, {rois.size(0)}, ScalarType::Long);
  const auto run = [&]<typename T>(T) {
    const regions::Levels<T> level{data<const T>(rois), rois.stride(0),    finest, count,
                                   T(canonical_scale),  T(canonical_level)};
    int64_t* const out = data<int64_t>(levels);
    parallel(rois.size(0), 16, [&](int64_t i) { out[i] = level(i); });
  };
  rois.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return levels;
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) { CFMVIT_IMPL(m, pyramid_levels, &cfmvit::pyramid_levels_cpu); }
