// Drawing masks on the CPU: tokens ranked by noise, as a stable argsort ranks them. Each sample has one
// owner.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <tuple>

#include "cpu/rows.h"
#include "plain/noise_order.h"
#include "torch/masking_checks.h"
#include "torch/registration.h"
#include "torch/stable_abi.h"

namespace cfmvit {
namespace {

// Buffers of the calling thread, for one row.
template <typename Real>
struct Scratch {
  std::vector<Real> noise, sorted;
  std::vector<uint32_t> bin, start, order, other;

  explicit Scratch(int64_t count)
      : noise(count), sorted(count), bin(count), start(kBins * count + 1), order(count), other(count) {}

  static constexpr int64_t kBins = 2;  // bins a token: fewer lengthen the insertion sort, more the prefix sum
};

// Stable least-significant-digit radix sort of one row: order[rank] = token. For noise of any distribution.
template <typename Real>
void radix_sort(Scratch<Real>& scratch, int64_t count) {
  constexpr int kDigits = sizeof(Real);
  std::array<std::array<uint32_t, 256>, kDigits> counts{};
  for (int64_t n = 0; n < count; ++n) {
    const uint64_t key = ordered(scratch.noise[n]);
    for (int d = 0; d < kDigits; ++d) ++counts[d][key >> (8 * d) & 255];
    scratch.order[n] = static_cast<uint32_t>(n);
  }
  for (int d = 0; d < kDigits; ++d) {
    uint32_t start = 0;
    for (uint32_t& bucket : counts[d]) {
      const uint32_t size = bucket;
      bucket = start;
      start += size;
    }
    for (int64_t n = 0; n < count; ++n) {
      const uint32_t token = scratch.order[n];
      scratch.other[counts[d][ordered(scratch.noise[token]) >> (8 * d) & 255]++] = token;
    }
    std::swap(scratch.order, scratch.other);
  }
}

// Stable sort of one row by bins of equal width, then by insertion, in a time that grows as the row does
// where the noise is about uniform. Returns false where it isn't and a bin has more than kMost.
template <typename Real>
bool bin_sort(Scratch<Real>& scratch, int64_t count, Real low, Real high) {
  constexpr uint32_t kMost = 24;
  if (count > 1 << 20) return false;  // a float tells no more bins apart
  const int64_t bins = Scratch<Real>::kBins * count;
  const Real scale = static_cast<Real>(bins - 1) / (high - low);
  if (!(scale > 0 && std::isfinite(scale))) return false;  // one value only, or an infinite one
  // Rounding keeps the order of differences and of products, so no bin holds more than what comes after it.
  CFMVIT_ROWS(bins<Real>)(scratch.bin.data(), scratch.noise.data(), low, scale, count);
  uint32_t* start = scratch.start.data();
  std::memset(start, 0, (bins + 1) * sizeof(uint32_t));
  for (int64_t n = 0; n < count; ++n) ++start[scratch.bin[n] + 1];
  uint32_t most = 0, before = 0;
  for (int64_t b = 1; b <= bins; ++b) {
    most = std::max(most, start[b]);
    start[b] = before += start[b];
  }
  if (most > kMost) return false;
  for (int64_t n = 0; n < count; ++n) {
    const uint32_t rank = start[scratch.bin[n]]++;
    scratch.order[rank] = static_cast<uint32_t>(n);
    scratch.sorted[rank] = scratch.noise[n];
  }
  for (int64_t i = 1; i < count; ++i) {
    const Real value = scratch.sorted[i];
    const uint32_t token = scratch.order[i];
    int64_t j = i;
    for (; j > 0 && scratch.sorted[j - 1] > value; --j) {
      scratch.sorted[j] = scratch.sorted[j - 1];
      scratch.order[j] = scratch.order[j - 1];
    }
    scratch.sorted[j] = value;
    scratch.order[j] = token;
  }
  return true;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> random_masking_cpu(Tensor noise, int64_t kept) {
  check_noise("random_masking", noise, kept);
  const int64_t batch = noise.size(0), count = noise.size(1);
  const bool precise = noise.scalar_type() == ScalarType::Double;
  if (!precise && noise.scalar_type() != ScalarType::Float)
    noise = torch::stable::to(noise, ScalarType::Float);
  const Tensor keep = like(noise, {batch, kept}, ScalarType::Long);
  const Tensor masked = like(noise, {batch, count - kept}, ScalarType::Long);
  const Tensor restore = like(noise, {batch, count}, ScalarType::Long);
  if (noise.numel() == 0) return {keep, masked, restore};  // rows without tokens may be any number
  int64_t *first = data<int64_t>(keep), *rest = data<int64_t>(masked), *ranks = data<int64_t>(restore);
  std::atomic<int64_t> nan{0};
  const auto run = [&](auto zero) {
    using Real = decltype(zero);
    const Real* from = data<const Real>(noise);
    const int64_t sample = noise.stride(0), column = noise.stride(1);
    parallel_ranges(batch, count * 16, [&](int64_t begin, int64_t end) {
      Scratch<Real> scratch(count);
      for (int64_t b = begin; b < end; ++b) {
        const Real* row = from + b * sample;
        for (int64_t n = 0; n < count; ++n) scratch.noise[n] = row[n * column];
        Real low, high;
        if (!CFMVIT_ROWS(extent<Real>)(scratch.noise.data(), count, &low, &high)) {
          nan += std::count_if(scratch.noise.begin(), scratch.noise.end(), [](Real x) { return x != x; });
          continue;
        }
        if (!bin_sort(scratch, count, low, high)) radix_sort(scratch, count);
        for (int64_t rank = 0; rank < count; ++rank) ranks[b * count + scratch.order[rank]] = rank;
        for (int64_t rank = 0; rank < kept; ++rank) first[b * kept + rank] = scratch.order[rank];
        for (int64_t rank = kept; rank < count; ++rank) {
          rest[b * (count - kept) + rank - kept] = scratch.order[rank];
        }
      }
    });
  };
  precise ? run(double{}) : run(float{});
  CFMVIT_CHECK(nan == 0, "random_masking: noise must not hold NaN, got ", nan.load());
  return {keep, masked, restore};
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) { CFMVIT_IMPL(m, random_masking, &cfmvit::random_masking_cpu); }
