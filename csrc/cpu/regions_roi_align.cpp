// RoIAlign on the CPU, on one map or on a pyramid.
#include "torch/regions_roi_align.h"

#include "cpu/regions_work_items.h"
#include "torch/dispatch.h"

namespace cfmvit {
namespace {

namespace r = regions;

// (R, C, P, Q); a tensor whose P and Q can't be walked as one is copied.
template <typename S>
r::Bins<S> bins_of(const Tensor& x) {
  return {data<std::remove_const_t<S>>(x), x.size(2), x.size(3), x.stride(0), x.stride(3), x.stride(1)};
}

template <typename T, typename S>
std::vector<r::Map<T, S>> maps_of(const std::vector<Tensor>& levels) {
  std::vector<r::Map<T, S>> maps;
  for (const Tensor& map : levels) {
    for (int64_t image = 0; image < map.size(0); ++image) {
      maps.push_back({data<std::remove_const_t<S>>(map) + image * map.stride(0),
                      map.size(2),
                      map.size(3),
                      {map.stride(2), map.stride(3), map.stride(1)},
                      nullptr});
    }
  }
  return maps;
}

const int64_t* level_data(const std::optional<Tensor>& levels) {
  return levels.has_value() ? data<const int64_t>(*levels) : nullptr;
}

struct AlignCpu {
  static void forward(const char* op, const std::vector<Tensor>& features, const Tensor& rois,
                      const std::optional<Tensor>& levels, const std::vector<r::Size>& sizes,
                      const r::Sampling& sampling, const Tensor& out) {
    dispatch_floating(op, out.scalar_type(), [&]<typename S>(S) {
      using T = acc_t<S>;
      r::forward<T, S>(r::Boxes<T>(op, rois, level_data(levels), sizes, sampling, false),
                       maps_of<T, const S>(features), out.size(1), bins_of<S>(out));
    });
  }

  static void backward(const char* op, const Tensor& grad, const Tensor& rois,
                       const std::optional<Tensor>& levels, const std::vector<r::Size>& sizes,
                       const r::Sampling& sampling, const std::vector<Tensor>& maps) {
    const Tensor flat = grad.stride(2) == grad.stride(3) * grad.size(3) ? grad : dense(grad);
    dispatch_floating(op, grad.scalar_type(), [&]<typename S>(S) {
      using T = acc_t<S>;
      r::backward<T, S, S>(r::Boxes<T>(op, rois, level_data(levels), sizes, sampling, true),
                           maps_of<T, S>(maps), grad.size(1), bins_of<const S>(flat));
    });
  }
};

}  // namespace
}  // namespace cfmvit

CFMVIT_REGISTER_ALIGN(CPU, cfmvit::AlignCpu)
