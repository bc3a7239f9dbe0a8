// Drawing masks on a GPU: checks, choice of dtype, launch. NaN, which the CPU refuses, ranks last.
#include <tuple>

#include "cuda/launch.h"
#include "kernels/masking_order.cuh"
#include "torch/dispatch.h"
#include "torch/masking_checks.h"
#include "torch/registration.h"

namespace cfmvit {

std::tuple<Tensor, Tensor, Tensor> random_masking_cuda(Tensor noise, int64_t kept) {
  constexpr const char* op = "random_masking";
  check_noise(op, noise, kept);
  const int64_t batch = noise.size(0), count = noise.size(1);
  const Tensor keep = like(noise, {batch, kept}, ScalarType::Long);
  const Tensor masked = like(noise, {batch, count - kept}, ScalarType::Long);
  const Tensor restore = like(noise, {batch, count}, ScalarType::Long);
  dispatch_floating(op, noise.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    on_device(noise, [&](cudaStream_t stream) {
      kernels::random_masking<S>(data<const S>(noise), noise.stride(0), noise.stride(1), data<int64_t>(keep),
                                 data<int64_t>(masked), data<int64_t>(restore), batch, count, kept, stream);
    });
  });
  return {keep, masked, restore};
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CUDA, m) { CFMVIT_IMPL(m, random_masking, &cfmvit::random_masking_cuda); }
