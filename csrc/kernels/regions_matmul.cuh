// The mean over RoIAlign's bins of large boxes on tensor cores. A box of T = taps_y * taps_x taps is cheaper
// as a matrix product from some T on.
//
// For a tile of 16 boxes and a row y of the map,
//   row[r, c] = sum_x wx[r, x] F[y, x, c],    pooled[r, c] += wy[r, y] row[r, c]:
// the product has the same left side on every row, which therefore stays in registers, rows and stretches of
// x that no box of the tile reads are left out, and weights are never stored as an image. wx is the sum of
// two 16-bit numbers, high and low, so the result is as exact as features are (relative error of the weights
// below 2^-16).
//
// Cost model, H100, bf16, a box and channel: a tap of the gather is 2 bytes from L2 at 5.5 TB/s, 0.36 ps. On
// the other side a row and 16 pixels of x are 16 * 2 multiply-adds, 64 flop, at the 400 TFLOP/s of mma.sync,
// 0.16 ps; a tile's boxes, taken in the order of their centres, read together about 8 rows more than each of
// them, and in x mostly all 4 stretches of a map of 64: 4 * 0.16 * (side + 8) ps. For a box of 5 tokens (T =
// 44) that is 8.3 against 15.8 ps, of 3 tokens (T = 22) 7.0 against 7.9: but for the tile's fixed cost, about
// 6 ps a box, equal near T = 40.
#pragma once

#include "kernels/for_each.cuh"
#include "kernels/regions_gather.cuh"
#include "kernels/regions_groups.cuh"
#include "kernels/tensor_cores.cuh"

namespace cfmvit::kernels {

constexpr int64_t kMatmulTaps = 40;
constexpr int kCentres = 8;      // groups of an image's boxes by their centre's row
constexpr int kMostRows = 1024;  // of a map; taller ones are gathered

constexpr int kMatmulThreads = 128, kTileBoxes = 64, kWarpBoxes = 16;
constexpr int kTilePixels = 64, kTileChannels = 64;  // of a row in shared memory
constexpr int kStages = 3;                           // rows there at a time
constexpr int kSteps = kTilePixels / 16, kTiles = kTileChannels / 8;

// The boxes that are products, by image and centre; order of the work, not of any sum.
struct MatmulBoxes {
  int32_t* group;  // (R,) image * kCentres + centre, or -1
  Groups groups;
};

inline MatmulBoxes matmul_boxes_of(Workspace& workspace, int64_t boxes, int64_t images) {
  int32_t* const group = workspace.take<int32_t>(boxes);
  return {group, groups_of(workspace, boxes, images * kCentres)};
}

struct MatmulGroup {
  Tables<float> tables;
  int32_t rows;
  int32_t* group;

  __device__ void operator()(int64_t box) const {
    const int32_t map = tables.map[box], count_y = tables.y.count(box);
    int32_t out = -1;
    if (int64_t{count_y} * tables.x.count(box) > kMatmulTaps) {
      const Tap<float>* const taps = tables.y.taps(box);
      const int32_t twice_centre = taps[0].pixel + taps[count_y - 1].pixel;
      out = map * kCentres + twice_centre * kCentres / (2 * rows);
    }
    group[box] = out;
  }
};

// The y weights of a box, row after row.
struct RowWeights {
  const Tap<float>* next = nullptr;
  int32_t left = 0;
  Tap<float> tap{-1, 0};

  __device__ void begin(const Tap<float>* taps, int32_t count) {
    next = taps;
    left = count;
    if (left > 0) tap = *next;
  }
  __device__ float at(int32_t y) {
    if (left == 0 || tap.pixel != y) return 0;
    const float weight = tap.weight;
    ++next;
    if (--left > 0) tap = *next;
    return weight;
  }
};

template <typename S>
struct MatmulShared {
  // Rows of the map, their 16-byte chunks permuted so that no two rows of a matrix share banks.
  alignas(16) S rows[kStages][kTilePixels][kTileChannels];
  // wx of each warp's boxes, high and low, padded against bank conflicts.
  alignas(16) S weights[kMatmulThreads / 32][2][kWarpBoxes][kTilePixels + 8];
  int32_t box[kTileBoxes], image[kTileBoxes];
  unsigned reads[kMostRows / 32], reads_x;  // rows that some box reads, and whether one reads this stretch
  uint16_t row[kMostRows];
  int rows_read;
};

// Fills shared.row with the rows that boxes of the image read.
template <typename S>
__device__ void list_rows(const Tables<float>& tables, int32_t image, MatmulShared<S>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kMostRows / 32) shared.reads[thread] = 0;
  __syncthreads();
  const int32_t box = shared.box[thread / 2];
  if (box >= 0 && shared.image[thread / 2] == image) {
    const int32_t count = tables.y.count(box);
    for (int32_t i = thread % 2; i < count; i += 2) {
      const int32_t y = tables.y.taps(box)[i].pixel;
      atomicOr(&shared.reads[y / 32], 1u << (y % 32));
    }
  }
  __syncthreads();
  if (thread < 32) {
    unsigned bits = shared.reads[thread];
    int at = __popc(bits);
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, at, step);
      if (thread >= step) at += before;
    }
    if (thread == 31) shared.rows_read = at;
    at -= __popc(bits);
    for (; bits != 0; bits &= bits - 1) {
      shared.row[at++] = static_cast<uint16_t>(32 * thread + __ffs(static_cast<int>(bits)) - 1);
    }
  }
  __syncthreads();
}

// The left side of a warp's products: wx of its boxes of the image at pixels [first, first + kTilePixels).
// Returns which of the kSteps stretches of 16 pixels have weights.
template <typename S>
__device__ unsigned load_weights(const Tables<float>& tables, int32_t image, int32_t first,
                                 MatmulShared<S>& shared, uint32_t (&high)[kSteps][4],
                                 uint32_t (&low)[kSteps][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto& weights = shared.weights[warp];
  __syncwarp();
  auto* const words = reinterpret_cast<uint32_t*>(weights);
  for (int i = lane; i < static_cast<int>(sizeof(weights) / 4); i += 32) words[i] = 0;
  __syncwarp();
  const int r = lane / 2, slot = warp * kWarpBoxes + r;
  if (shared.box[slot] >= 0 && shared.image[slot] == image) {
    const Tap<float>* const taps = tables.x.taps(shared.box[slot]);
    const int32_t count = tables.x.count(shared.box[slot]);
    for (int32_t i = lane % 2; i < count; i += 2) {
      const int32_t x = taps[i].pixel - first;
      if (x < 0 || x >= kTilePixels) continue;
      from_acc(taps[i].weight, weights[0][r][x]);
      from_acc(taps[i].weight - to_acc(weights[0][r][x]), weights[1][r][x]);
    }
  }
  __syncwarp();
  unsigned steps = 0;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    uint32_t any = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i % 2), column = 16 * s + 2 * (lane % 4) + 8 * (i / 2);
      high[s][i] = *reinterpret_cast<const uint32_t*>(&weights[0][row][column]);
      low[s][i] = *reinterpret_cast<const uint32_t*>(&weights[1][row][column]);
      any |= high[s][i] | low[s][i];
    }
    if (__any_sync(kAllLanes, any != 0)) steps |= 1u << s;
  }
  return steps;
}

// Starts copying kTilePixels pixels and kTileChannels channels of a row, zeros beyond the map.
template <typename S>
__device__ void fetch_row(S (&to)[kTilePixels][kTileChannels], const S* from, int64_t stride, int pixels,
                          int channels) {
  constexpr int kVec = 16 / sizeof(S), kChunks = kTileChannels / kVec, kStep = kMatmulThreads / kChunks;
  static_assert(kStep % kChunks == 0);  // so a thread's chunks all have the same number and permutation
  const int x = static_cast<int>(threadIdx.x) / kChunks, chunk = static_cast<int>(threadIdx.x) % kChunks;
  S* const target = &to[x][(chunk ^ x % kChunks) * kVec];
  const S* const source = from + x * stride + chunk * kVec;
#pragma unroll
  for (int first = 0; first < kTilePixels; first += kStep) {
    const bool valid = first + x < pixels && chunk * kVec < channels;
    copy_async(target + first * kTileChannels, valid ? source + first * stride : from, valid);
  }
}

// sum += wy * (wx F[y]) for a warp's boxes.
template <typename S>
__device__ void add_row(const S (&row)[kTilePixels][kTileChannels], unsigned steps,
                        const uint32_t (&high)[kSteps][4], const uint32_t (&low)[kSteps][4],
                        const float (&weight)[2], float (&sum)[kTiles][4]) {
  constexpr int kVec = 16 / sizeof(S), kChunks = kTileChannels / kVec;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kAtOnce = 4;  // sums in flight, to hide the latency of a product
#pragma unroll
  for (int first = 0; first < kTiles; first += kAtOnce) {
    float product[kAtOnce][4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if ((steps >> s & 1) == 0) continue;
      const int x = 16 * s + lane % 16;
#pragma unroll
      for (int n = 0; n < kAtOnce; n += 2) {
        const int chunk = first + n + lane / 16;
        uint32_t features[4];
        load_transposed(features, &row[x][(chunk ^ x % kChunks) * kVec]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply<S>(product[n + i], high[s], features[2 * i], features[2 * i + 1]);
          multiply<S>(product[n + i], low[s], features[2 * i], features[2 * i + 1]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[first + n][i] += weight[i / 2] * product[n][i];
    }
  }
}

// A block: kTileBoxes boxes, in the order of the groups, and kTileChannels channels.
template <typename S>
__global__ void __launch_bounds__(kMatmulThreads, 3) products_kernel(Gather<S> op, Groups products) {
  __shared__ MatmulShared<S> shared;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t total = products.begin[products.count], first_slot = int64_t{blockIdx.x} * kTileBoxes;
  if (first_slot >= total) return;
  if (thread < kTileBoxes) {
    const bool filled = first_slot + thread < total;
    const int32_t box = filled ? products.order[first_slot + thread] : -1;
    shared.box[thread] = box;
    shared.image[thread] = filled ? op.tables.map[box] : -1;
  }
  __syncthreads();
  const Level<const S>& on = op.maps.level[0];
  const int32_t width = static_cast<int32_t>(on.width), first_channel = blockIdx.y * kTileChannels;
  const int channels = op.channels - first_channel;
  const int mine = warp * kWarpBoxes + lane / 4;  // and 8 further on

  float sum[kTiles][4] = {};
  for (int slot = 0; slot < kTileBoxes && shared.box[slot] >= 0;) {  // image after image, mostly one
    const int32_t image = shared.image[slot];
    while (slot < kTileBoxes && shared.image[slot] == image) ++slot;
    list_rows(op.tables, image, shared);
    const int rows = shared.rows_read;
    for (int32_t first = 0; first < width; first += kTilePixels) {
      uint32_t high[kSteps][4], low[kSteps][4];
      const unsigned steps = load_weights(op.tables, image, first, shared, high, low);
      if (thread == 0) shared.reads_x = 0;
      __syncthreads();
      if (lane == 0) atomicOr(&shared.reads_x, steps);
      __syncthreads();
      if (shared.reads_x == 0) continue;
      RowWeights weights[2];
      for (int i = 0; i < 2; ++i) {
        const int32_t box = shared.image[mine + 8 * i] == image ? shared.box[mine + 8 * i] : -1;
        if (box >= 0) weights[i].begin(op.tables.y.taps(box), op.tables.y.count(box));
      }
      const S* const from = on.data + image * on.image + int64_t{first} * on.pixel + first_channel;
      const auto start = [&](int i) {
        if (i < rows) {
          fetch_row(shared.rows[i % kStages], from + shared.row[i] * on.row, on.pixel, width - first,
                    channels);
        }
        commit_copies();
      };
      for (int i = 0; i < kStages - 1; ++i) start(i);
      for (int i = 0; i < rows; ++i) {
        wait_copies<kStages - 2>();
        __syncthreads();
        start(i + kStages - 1);
        const float weight[2] = {weights[0].at(shared.row[i]), weights[1].at(shared.row[i])};
        if (!__any_sync(kAllLanes, weight[0] != 0 || weight[1] != 0)) continue;
        add_row(shared.rows[i % kStages], steps, high, low, weight, sum);
      }
      __syncthreads();
    }
  }

  bool finite = true;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t box = shared.box[mine + 8 * half], c = 8 * n + 2 * (lane % 4);
      if (box < 0 || c >= channels) continue;
      Vec<S, 2> vec{};
      for (int i = 0; i < 2; ++i) {
        finite = finite && regions::finite(sum[n][2 * half + i]);
        vec.set(i, sum[n][2 * half + i]);
      }
      *reinterpret_cast<Vec<S, 2>*>(op.out.at(box, 0, 0, first_channel + c)) = vec;
    }
  }
  // Zero times what is not finite is NaN: then pixels that a box does not read matter, and it is gathered.
  if (__all_sync(kAllLanes, finite)) return;
  __syncwarp();
  for (int i = lane; i < kWarpBoxes * kTileChannels; i += 32) {
    const int32_t box = shared.box[warp * kWarpBoxes + i / kTileChannels], c = i % kTileChannels;
    if (box < 0 || c >= channels || regions::finite(to_acc(*op.out.at(box, 0, 0, first_channel + c))))
      continue;
    op.element(box, 0, 0, first_channel + c);
  }
}

// Whether large boxes may be products: 16-bit features in vectors, not normalised, on maps that are not huge.
template <typename S>
bool has_products(const Gather<S>& op) {
  return kHasTensorCores<S> && op.scale == nullptr && op.maps.level[0].height <= kMostRows &&
         op.maps.images <= INT32_MAX / kCentres && in_vectors<kMapVec<S>>(op.maps, op.channels) &&
         in_vectors<kMapVec<S>>(op.out, op.channels);
}

// The means of all boxes, each by the cheaper way.
template <typename S>
void pool(Gather<S> op, const MatmulBoxes& products, int64_t boxes, cudaStream_t stream) {
  if constexpr (kHasTensorCores<S>) {
    if (has_products(op)) {
      op.most = kMatmulTaps;
      const auto rows = static_cast<int32_t>(op.maps.level[0].height);
      for_each(boxes, MatmulGroup{op.tables, rows, products.group}, stream);
      make_groups(products.group, boxes, products.groups, stream);
      const dim3 grid = grid_size(ceil_div(boxes, kTileBoxes), ceil_div(op.channels, kTileChannels));
      launch(products_kernel<S>, grid, kMatmulThreads, 0, stream, op, products.groups);
    }
  }
  gather(op, {}, boxes, stream);
}

}  // namespace cfmvit::kernels
