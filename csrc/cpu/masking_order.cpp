// Drawing masks on the CPU: tokens ranked by noise, as a stable argsort ranks them. Each sample has one
// owner.
#include <array>
#include <atomic>
#include <cmath>
#include <tuple>

#include "checks.h"
#include "half.h"
#include "stable.h"

namespace cfmvit {
namespace {

// A float as an unsigned integer of the same order; the two zeros are equal, as they are to argsort.
uint64_t ordered(float x) {
  const uint32_t bits = bits_of(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
uint64_t ordered(double x) {
  uint64_t bits;
  x += 0.0;
  std::memcpy(&bits, &x, sizeof bits);
  return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}

// Stable least-significant-digit radix sort of one row: order[rank] = token.
template <typename Real>
void argsort(const Real* noise, int64_t stride, int64_t count, std::vector<uint64_t>& keys,
             std::vector<uint32_t>& order, std::vector<uint32_t>& other) {
  constexpr int kDigits = sizeof(Real);
  std::array<std::array<uint32_t, 256>, kDigits> counts{};
  for (int64_t n = 0; n < count; ++n) {
    const uint64_t key = keys[n] = ordered(noise[n * stride]);
    for (int d = 0; d < kDigits; ++d) ++counts[d][key >> (8 * d) & 255];
    order[n] = static_cast<uint32_t>(n);
  }
  for (int d = 0; d < kDigits; ++d) {
    uint32_t start = 0;
    for (uint32_t& bucket : counts[d]) {
      const uint32_t size = bucket;
      bucket = start;
      start += size;
    }
    for (int64_t n = 0; n < count; ++n) other[counts[d][keys[order[n]] >> (8 * d) & 255]++] = order[n];
    std::swap(order, other);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> random_masking_cpu(Tensor noise, int64_t kept) {
  CFMVIT_CHECK(noise.dim() == 2, "random_masking: noise must have 2 dimensions, got ", noise.dim());
  const int64_t batch = noise.size(0), count = noise.size(1);
  CFMVIT_CHECK(kept >= 0 && kept <= count, "random_masking: kept must lie in 0..", count, ", got ", kept);
  const bool precise = noise.scalar_type() == ScalarType::Double;
  if (!precise && noise.scalar_type() != ScalarType::Float)
    noise = torch::stable::to(noise, ScalarType::Float);
  const Tensor keep = like(noise, {batch, kept}, ScalarType::Long);
  const Tensor masked = like(noise, {batch, count - kept}, ScalarType::Long);
  const Tensor restore = like(noise, {batch, count}, ScalarType::Long);
  int64_t *first = data<int64_t>(keep), *rest = data<int64_t>(masked), *places = data<int64_t>(restore);
  std::atomic<bool> nan{false};
  const auto run = [&](auto zero) {
    using Real = decltype(zero);
    const Real* from = data<const Real>(noise);
    const int64_t sample = noise.stride(0), column = noise.stride(1);
    parallel(batch, count * 32, [&](int64_t b) {
      thread_local std::vector<uint64_t> keys;
      thread_local std::vector<uint32_t> order, other;
      keys.resize(count), order.resize(count), other.resize(count);
      const Real* row = from + b * sample;
      for (int64_t n = 0; n < count; ++n) {
        if (std::isnan(row[n * column])) nan = true;
      }
      argsort(row, column, count, keys, order, other);
      for (int64_t rank = 0; rank < count; ++rank) {
        const int64_t token = order[rank];
        places[b * count + token] = rank;
        if (rank < kept) {
          first[b * kept + rank] = token;
        } else {
          rest[b * (count - kept) + rank - kept] = token;
        }
      }
    });
  };
  precise ? run(double{}) : run(float{});
  CFMVIT_CHECK(!nan, "random_masking: noise must not hold NaN");
  return {keep, masked, restore};
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  m.impl("random_masking", TORCH_BOX(&cfmvit::random_masking_cpu));
}
