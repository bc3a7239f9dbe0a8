// The mean over RoIAlign's bins of large boxes on tensor cores. A box of T = taps_y * taps_x taps is cheaper
// as a matrix product from some T on.
//
// For 8 boxes and a row y of the map,
//   row[c, r] = sum_x F[y, x, c] wx[r, x],    pooled[r, c] += wy[r, y] row[c, r]:
// the product has the same right side on every row, which therefore stays in registers, rows and stretches of
// x that none of the boxes reads are left out, and weights are never stored as an image. wx is the sum of two
// 16-bit numbers, whose products add up in the same place, so the result is as exact as features are
// (relative error of the weights below 2^-16).
//
// What a row costs is shared by those that read it: boxes are sorted by size and place, so that neighbours
// read about the same pixels, and a block reads a pixel once from the L2 for all its boxes. Boxes of few taps
// have too little in common: by the counts of docs/kernel-counts.md, products from 6 to 16 taps on come to
// about the same, those from 40 on to a seventh more.
#pragma once

#include "kernels/for_each.cuh"
#include "kernels/regions_gather.cuh"
#include "kernels/regions_groups.cuh"
#include "kernels/tensor_cores.cuh"

namespace cfmvit::kernels {

constexpr int64_t kMatmulTaps = 12;

constexpr int kMatmulThreads = 256, kTileBoxes = 128, kWarpBoxes = 16;
constexpr int kTilePixels = 64, kTileChannels = 64;  // of a row in shared memory
constexpr int kBatch = 2, kStages = 2 * kBatch;      // rows copied at a time, and there at a time
constexpr int kWeightedRows = 64;                    // rows whose weights are there at a time
static_assert(kMatmulThreads == 2 * kTileBoxes);     // a pair of lanes has a box
constexpr int kMatmulWarps = kMatmulThreads / 32, kSteps = kTilePixels / 16, kTiles = kTileChannels / 16;
constexpr int kPixelSize = kTileChannels + 8, kStageSize = kTilePixels * kPixelSize;  // padded

// The boxes that are products, image after image, in each those together that read about the same pixels;
// order of the work, not of any sum.
struct MatmulBoxes {
  int32_t *image, *key;  // (R,) of each box, or -1
  Groups images;
  int32_t* order;  // (R,) boxes of images.order, by key in each image
};

inline MatmulBoxes matmul_boxes_of(Workspace& workspace, int64_t boxes, int64_t images) {
  int32_t *const image = workspace.take<int32_t>(boxes), *const key = workspace.take<int32_t>(boxes);
  const Groups groups = groups_of(workspace, boxes, images);
  return {image, key, groups, workspace.take<int32_t>(boxes)};
}

// Which boxes are products, and their keys: by size in powers of 8, then in bands of the map to and fro.
struct MatmulKeys {
  Tables<float> tables;
  int32_t rows, columns;  // of the map
  int32_t *image, *key;

  __device__ void operator()(int64_t box) const {
    constexpr int kBands = 8, kPlaces = 64;
    const int32_t count_y = tables.y.count(box), count_x = tables.x.count(box);
    const bool is_product = int64_t{count_y} * count_x > kMatmulTaps;
    image[box] = is_product ? tables.map[box] : -1;
    if (!is_product) return;
    const Tap<float>*const y = tables.y.taps(box), *const x = tables.x.taps(box);
    const int32_t top = y[0].pixel, bottom = y[count_y - 1].pixel, left = x[0].pixel,
                  right = x[count_x - 1].pixel;
    const int64_t area = int64_t{bottom - top + 1} * (right - left + 1);
    const int32_t size = (31 - __clz(static_cast<int32_t>(min(area, int64_t{INT32_MAX})))) / 3,
                  band = (top + bottom) * kBands / (2 * rows),
                  place = static_cast<int32_t>(int64_t{left + right} * kPlaces / (2 * int64_t{columns}));
    key[box] = (size * kBands + band) * kPlaces + (band % 2 == 0 ? place : kPlaces - 1 - place);
  }
};

// A number that stays in its register, and is not made again from its parts wherever it is used.
__device__ __forceinline__ int kept(int number) {
#ifdef __CUDACC__
  asm("" : "+r"(number));
#endif
  return number;
}

// Zeroes what is a warp's own.
template <typename T>
__device__ void clear(T& all) {
  constexpr int kWords = sizeof(T) / 16;
  static_assert(sizeof(T) % 16 == 0);
  __syncwarp();
#pragma unroll
  for (int first = 0; first < kWords; first += 32) {
    const int i = first + static_cast<int>(threadIdx.x % 32);
    if (i < kWords) reinterpret_cast<Vec<float, 4>*>(&all)[i] = Vec<float, 4>{};
  }
  __syncwarp();
}

template <typename S>
struct MatmulShared {
  union {
    // Rows of the map; their pixels, and those of weights, are padded against bank conflicts.
    alignas(16) S rows[kStages][kTilePixels][kPixelSize];
    // wx of each warp's boxes, high and low; in registers before rows come.
    alignas(16) S weights[kMatmulWarps][2][kWarpBoxes][kTilePixels + 8];
  };
  // wy of each warp's boxes in the next rows; bit 8 (i % 2) + 4 g + s where row i is read by its boxes from 8
  // g on in stretch s, of 16 pixels; bit 8 (i % 2) + s where some box of the block does.
  alignas(16) float row_weights[kMatmulWarps][kWeightedRows][kWarpBoxes];
  alignas(16) unsigned readers[kMatmulWarps][kWeightedRows / kBatch];
  unsigned reads[kWeightedRows / kBatch];
  int32_t box[kTileBoxes], image[kTileBoxes];
  unsigned steps[kTileBoxes];  // bits of the stretches that each reads of these columns
  int32_t top, bottom;         // the rows that they read
};

// The right sides of a warp's products, of 8 boxes each: wx of those of the image at pixels [first, first +
// kTilePixels), words 0 and 1 of the high ones, 2 and 3 of the low ones.
template <typename S>
__device__ void load_weights(const AxisTables<float>& x, int32_t image, int32_t first,
                             MatmulShared<S>& shared, uint32_t (&right)[2][kSteps][4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto& weights = shared.weights[warp];
  const int r = lane / 2, slot = warp * kWarpBoxes + r;
  clear(weights);
  unsigned steps = 0;
  if (shared.box[slot] >= 0 && shared.image[slot] == image) {
    const Tap<float>* const taps = added_up(x.taps(shared.box[slot]));
    const int32_t count = x.count(shared.box[slot]);
#pragma unroll 1
    for (int32_t i = lane % 2; i < count; i += 2) {
      const Tap<float> tap = taps[i];
      const int32_t at = tap.pixel - first;
      if (at < 0 || at >= kTilePixels) continue;
      steps |= 1u << at / 16;
      from_acc(tap.weight, weights[0][r][at]);
      from_acc(tap.weight - to_acc(weights[0][r][at]), weights[1][r][at]);
    }
  }
  steps |= __shfl_xor_sync(kAllLanes, steps, 1);
  if (lane % 2 == 0) shared.steps[slot] = steps;
  __syncwarp();
#pragma unroll
  for (int u = 0; u < 2; ++u) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * u, column = 16 * s + 2 * (lane % 4) + 8 * (i % 2);
        right[u][s][i] = *reinterpret_cast<const uint32_t*>(&weights[i / 2][row][column]);
      }
    }
  }
}

// Finds the first and the last row that boxes read of these columns.
template <typename S>
__device__ void find_rows(const AxisTables<float>& y, MatmulShared<S>& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.top = INT32_MAX;
    shared.bottom = -1;
  }
  __syncthreads();
  if (threadIdx.x < kTileBoxes && shared.steps[threadIdx.x] != 0) {
    const int32_t box = shared.box[threadIdx.x];
    atomicMin(&shared.top, y.taps(box)[0].pixel);
    atomicMax(&shared.bottom, y.taps(box)[y.count(box) - 1].pixel);
  }
  __syncthreads();
}

// wy of all boxes in kWeightedRows rows, from `first` on.
template <typename S>
__device__ void load_row_weights(const AxisTables<float>& y, int first, MatmulShared<S>& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int r = lane / 2, slot = warp * kWarpBoxes + r;
  if (threadIdx.x < kWeightedRows / kBatch) shared.reads[threadIdx.x] = 0;
  clear(shared.row_weights[warp]);
  clear(shared.readers[warp]);
  const unsigned steps = shared.steps[slot];
  if (steps != 0) {
    const Tap<float>* const taps = added_up(y.taps(shared.box[slot]));
    const int32_t count = y.count(shared.box[slot]);
#pragma unroll 1
    for (int32_t i = lane % 2; i < count; i += 2) {
      const Tap<float> tap = taps[i];
      const int at = tap.pixel - first;
      if (at < 0 || at >= kWeightedRows) continue;
      shared.row_weights[warp][at][r] = tap.weight;
      atomicOr(&shared.readers[warp][at / kBatch], steps << (8 * (at % kBatch) + 4 * (r / 8)));
    }
  }
  __syncthreads();
  static_assert(kWeightedRows == 32 * kBatch);
  const unsigned readers = shared.readers[warp][lane];
  if (readers != 0) atomicOr(&shared.reads[lane], (readers | readers >> 4) & 0x0f0f);
  __syncthreads();
}

// product += wx F[y] at 16 pixels, for the first or the second 8 boxes of a warp or for both.
template <bool kFirst, bool kSecond, typename S>
__device__ void add_stretch(const S* from, const uint32_t (&first)[4], const uint32_t (&second)[4],
                            float (&product)[2][kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    uint32_t features[2][4];
    for (int m = 0; m < 2; ++m) load_transposed(features[m], from + 16 * (n + m));
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (kFirst) multiply<S>(product[0][n + m], features[m], first[i], first[i + 1]);
        if (kSecond) multiply<S>(product[1][n + m], features[m], second[i], second[i + 1]);
      }
    }
  }
}

// sum += wy (wx F[y]) for the first or the second 8 boxes of a warp or for both. row: from where this lane
// loads; readers: as in MatmulShared; weights: wy of the first of this lane's boxes.
template <bool kFirst, bool kSecond, typename S>
__device__ __forceinline__ void add_row(const S* row, const uint32_t (&right)[2][kSteps][4], unsigned readers,
                                        const float* weights, float (&sum)[2][kTiles][4]) {
  float product[2][kTiles][4] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const S* const from = row + 16 * s * kPixelSize;
    const bool first = kFirst && (readers & 1u << s), second = kSecond && (readers & 16u << s);
    if (first && second) {
      add_stretch<kFirst, kSecond>(from, right[0][s], right[1][s], product);
    } else if (first) {
      add_stretch<kFirst, false>(from, right[0][s], right[1][s], product);
    } else if (second) {
      add_stretch<false, kSecond>(from, right[0][s], right[1][s], product);
    }
  }
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    if (!(u == 0 ? kFirst : kSecond)) continue;
    const auto weight = *reinterpret_cast<const Vec<float, 2>*>(weights + 8 * u);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[u][n][i] += weight[i % 2] * product[u][n][i];
    }
  }
}

// A block: kTileBoxes boxes, in the order of the groups, and kTileChannels channels.
template <typename S>
__global__ void __launch_bounds__(kMatmulThreads, 2)
    products_kernel(Gather<S> op, const int32_t* order, const int64_t* count) {
  auto& shared = *dynamic_shared<MatmulShared<S>>();
  const int thread = threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t total = *count, first_slot = int64_t{blockIdx.x} * kTileBoxes;
  if (first_slot >= total) return;
  if (thread < kTileBoxes) {
    const bool filled = first_slot + thread < total;
    const int32_t box = filled ? order[first_slot + thread] : -1;
    shared.box[thread] = box;
    shared.image[thread] = filled ? op.tables.map[box] : -1;
  }
  __syncthreads();
  const Level<const S>& on = op.maps.level[0];
  const int32_t width = static_cast<int32_t>(on.width), first_channel = blockIdx.y * kTileChannels;
  const int channels = op.channels - first_channel;

  // Half of the threads copy one batch, half the next, 16 bytes of every 16th pixel each.
  constexpr int kVec = 16 / sizeof(S), kChunks = kTileChannels / kVec;
  static_assert(kMatmulThreads / 2 == 16 * kChunks);
  const int pixel = threadIdx.x / kChunks % 16, channel = threadIdx.x % kChunks * kVec;
  const int half = threadIdx.x / (kMatmulThreads / 2);
  S* const stages = &shared.rows[0][0][0];
  const int target = kept(half * kBatch * kStageSize + pixel * kPixelSize + channel);
  const int source = kept((lane / 16 * 8 + lane % 8) * kPixelSize + lane / 8 % 2 * 8);  // of load_transposed
  const int weights = kept(warp * kWeightedRows * kWarpBoxes + 2 * (lane % 4));

  float sum[2][kTiles][4] = {};
  for (int slot = 0; slot < kTileBoxes && shared.box[slot] >= 0;) {  // image after image, mostly one
    for (int32_t first = 0; first < width; first += kTilePixels) {
      const int32_t image = shared.image[slot];  // not kept: registers are few
      uint32_t right[2][kSteps][4];
      load_weights(op.tables.x, image, first, shared, right);
      find_rows(op.tables.y, shared);
      const int known = channel < channels ? width - first - pixel : 0;
      unsigned mine = 0;  // of the bits of shared.reads
      for (int j = 0; j < kSteps; ++j) mine |= (known > 16 * j ? 0x101u : 0) << j;
      for (int32_t top = shared.top; top <= shared.bottom; top += kWeightedRows) {
        load_row_weights(op.tables.y, top, shared);
        const S* from = added_up(on.data + image * on.image + (top + half * kBatch) * on.row +
                                 int64_t{first + pixel} * on.pixel + first_channel + channel);
        const int rows = min(kWeightedRows, shared.bottom + 1 - top);
        const auto start = [&](int i) {
          if (i < rows && i / kBatch % 2 == half) {
            const unsigned reads = shared.reads[i / kBatch] & mine;
            S* to = stages + target;
#pragma unroll
            for (int k = 0; k < kBatch; ++k, to += kStageSize, from += on.row) {
#pragma unroll
              for (int j = 0; j < kSteps; ++j) {
                copy_async(to + 16 * j * kPixelSize, from + 16 * j * int64_t{on.pixel},
                           reads & 1u << (8 * k + j));
              }
            }
            from += kBatch * on.row;
          }
          commit_copies();
        };
        start(0);
        for (int i = 0; i < rows; i += kBatch) {
          wait_copies<0>();
          __syncthreads();
          start(i + kBatch);
          unsigned reads = shared.readers[warp][i / kBatch];
#pragma unroll 1
          for (int k = i; reads != 0; ++k, reads >>= 8) {
            const float* const weight = &shared.row_weights[0][0][0] + k * kWarpBoxes + weights;
            const S* const row = stages + k % kStages * kStageSize + source;
            if ((reads & 15) != 0 && (reads & 240) != 0) {
              add_row<true, true>(row, right, reads, weight, sum);
            } else if ((reads & 15) != 0) {
              add_row<true, false>(row, right, reads, weight, sum);
            } else if ((reads & 240) != 0) {
              add_row<false, true>(row, right, reads, weight, sum);
            }
          }
        }
        __syncthreads();
      }
    }
    const int32_t image = shared.image[slot];
#pragma unroll
    for (int i = lane; i < kTileBoxes; i += 32) {
      slot += __popc(__ballot_sync(kAllLanes, shared.image[i] == image));
    }
  }

  float zero = 0;  // or NaN, where a sum is not finite
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int32_t box = shared.box[warp * kWarpBoxes + 8 * u + lane / 4];
    S* const to = op.out.at(max(box, 0), 0, 0, first_channel);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {  // 8 channels
      Vec<S, 2> vec{};
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const float value = sum[u][i / 2][i % 2 * 2 + v];
        zero += 0 * value;
        vec.set(v, value);
      }
      vec.words[0] = transposed(vec.words[0]);
      const int c = 8 * i + 2 * (lane % 4);
      if (box >= 0 && c < channels) *reinterpret_cast<Vec<S, 2>*>(to + c) = vec;
    }
  }
  // Zero times what is not finite is NaN: then pixels that a box does not read matter, and it is gathered.
  if (__all_sync(kAllLanes, zero == 0)) return;
  __syncwarp();
  for (int i = lane; i < kWarpBoxes * kTileChannels; i += 32) {
    const int32_t box = shared.box[warp * kWarpBoxes + i / kTileChannels], c = i % kTileChannels;
    if (box < 0 || c >= channels) continue;
    S* const to = op.out.at(box, 0, 0, first_channel + c);
    if (!regions::finite(to_acc(*to))) *to = op.value(box, 0, 0, first_channel + c);
  }
}

// Whether large boxes may be products: 16-bit features in vectors, not normalised, on maps that are not huge.
template <typename S>
bool has_products(const Gather<S>& op) {
  return kHasTensorCores<S> && op.scale == nullptr && op.maps.images > 0 &&
         in_vectors<kMapVec<S>>(op.maps, op.channels) && in_vectors<kMapVec<S>>(op.out, op.channels);
}

// The means of all boxes, each by the cheaper way.
template <typename S>
void pool(Gather<S> op, const MatmulBoxes& products, int64_t boxes, cudaStream_t stream) {
  if constexpr (kHasTensorCores<S>) {
    if (has_products(op)) {
      op.most = kMatmulTaps;
      const auto rows = static_cast<int32_t>(op.maps.level[0].height),
                 columns = static_cast<int32_t>(op.maps.level[0].width);
      for_each(boxes, MatmulKeys{op.tables, rows, columns, products.image, products.key}, stream);
      make_groups(products.image, boxes, products.images, stream);
      sort_groups(products.key, products.images, boxes, products.order, stream);
      const dim3 grid = grid_size(ceil_div(boxes, kTileBoxes), ceil_div(op.channels, kTileChannels));
      launch(products_kernel<S>, grid, kMatmulThreads, sizeof(MatmulShared<S>), stream, op, products.order,
             products.images.begin + products.images.count);
    }
  }
  gather(op, {}, boxes, stream);
}

}  // namespace cfmvit::kernels
