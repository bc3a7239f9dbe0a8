// RoIAlign on a GPU, on one map or on a pyramid.
#include "cuda/regions_views.h"
#include "kernels/regions_bin_rows.cuh"
#include "torch/dispatch.h"

namespace cfmvit {
namespace {

template <typename S>
kernels::Bins<S> bins_of(const Tensor& x) {  // (R, C, P, Q)
  return {data<S>(x), x.stride(0), x.stride(2), x.stride(3), x.stride(1)};
}

}  // namespace

struct AlignCuda {
  static void forward(const char* op, const std::vector<Tensor>& features, const Tensor& rois,
                      const std::optional<Tensor>& levels, const std::vector<regions::Size>& sizes,
                      const regions::Sampling& sampling, const Tensor& out) {
    check_counts(op, rois.size(0), out.size(1), sizes, sampling);
    if (out.numel() == 0) return;
    dispatch_floating(op, out.scalar_type(), [&](auto zero) {
      using S = decltype(zero);
      const auto maps = pyramid_of<const S>(op, features, sizes);
      kernels::Tables<acc_t<S>> tables;
      kernels::Pyramid<S> packed;
      const Tensor memory = carve_workspace(out, [&](kernels::Workspace& workspace) {
        tables = carve_tables<acc_t<S>>(workspace, rois.size(0), sizes, sampling);
        packed = kernels::packed_for<S>(workspace, maps, rois.size(0), sampling.bins_y * sampling.bins_x,
                                        out.size(1));
      });
      on_device(out, [&](cudaStream_t stream) {
        with_boxes(rois, levels,
                   [&](auto boxes) { kernels::make_tables(boxes, maps, sampling, tables, stream); });
        kernels::align<S>(
            {maps, nullptr, tables, INT64_MAX, bins_of<S>(out), static_cast<int32_t>(out.size(1))}, packed,
            rois.size(0), stream);
      });
    });
  }

  static void backward(const char* op, const Tensor& grad, const Tensor& rois,
                       const std::optional<Tensor>& levels, const std::vector<regions::Size>& sizes,
                       const regions::Sampling& sampling, const std::vector<Tensor>& maps) {
    check_counts(op, rois.size(0), grad.size(1), sizes, sampling);
    if (sizes[0].batch * sizes[0].channels == 0) return;
    if (sampling.bins_y * sampling.bins_x == 0) {
      for (Tensor map : maps) torch::stable::zero_(map);
      return;
    }
    dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
      using S = decltype(zero);
      const auto views = pyramid_of<S>(op, maps, sizes);
      kernels::Tables<acc_t<S>> tables;
      const auto bins = bins_of<const S>(grad);
      kernels::Readers readers;
      kernels::Pyramid<S> packed;
      const Tensor memory = carve_workspace(grad, [&](kernels::Workspace& workspace) {
        tables = carve_tables<acc_t<S>>(workspace, rois.size(0), sizes, sampling);
        readers = kernels::readers_of(workspace, rois.size(0), views.images * views.levels);
        packed = kernels::packed_for<S>(workspace, bins, rois.size(0), sampling, grad.size(1));
      });
      on_device(grad, [&](cudaStream_t stream) {
        with_boxes(rois, levels,
                   [&](auto boxes) { kernels::make_tables(boxes, views, sampling, tables, stream); });
        kernels::find_readers(tables, rois.size(0), readers, stream);
        kernels::scatter<S, S>(views, tables, readers, bins, packed, rois.size(0),
                               static_cast<int32_t>(grad.size(1)), stream);
      });
    });
  }
};

}  // namespace cfmvit

CFMVIT_REGISTER_ALIGN(CUDA, cfmvit::AlignCuda)
