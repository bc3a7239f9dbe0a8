// The mean over RoIAlign's bins of large boxes on tensor cores. A box of T = taps_y * taps_x taps is cheaper
// as a matrix product from some T on.
//
// For 8 boxes and a row y of the map,
//   row[r, c] = sum_x wx[r, x] F[y, x, c],    pooled[r, c] += wy[r, y] row[r, c]:
// the product has the same left side on every row, which therefore stays in registers, rows and stretches of
// x that none of the boxes reads are left out, and weights are never stored as an image. wx is the sum of two
// 16-bit numbers, the high ones in one half of the left side's rows and the low ones in the other, so the
// result is as exact as features are (relative error of the weights below 2^-16).
//
// What a row costs is shared by those that read it: boxes are sorted by size and place, so that neighbours
// read about the same pixels, and a block reads a row once from the L2 for all its boxes. Boxes of few taps
// have too little in common: by the counts of docs/kernel-counts.md, products from 24 and from 40 taps on
// come to the same, from 60 on to more.
#pragma once

#include "kernels/for_each.cuh"
#include "kernels/regions_gather.cuh"
#include "kernels/regions_groups.cuh"
#include "kernels/tensor_cores.cuh"

namespace cfmvit::kernels {

constexpr int64_t kMatmulTaps = 40;
constexpr int kMostRows = 1024;  // of a map; taller ones are gathered

constexpr int kMatmulThreads = 256, kTileBoxes = 128, kWarpBoxes = 16;
constexpr int kTilePixels = 64, kTileChannels = 64;  // of a row in shared memory
constexpr int kStages = 4;                           // rows there at a time
static_assert(kMatmulThreads == 2 * kTileBoxes);     // list_rows
constexpr int kSteps = kTilePixels / 16, kTiles = kTileChannels / 8;
constexpr unsigned kFirstLanes = 0x11111111;  // of the groups of four that have a row of a fragment

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

// The y weights of a box, row after row from below; few registers, since they live as long as the sums.
struct RowWeights {
  int32_t left = 0, pixel = -1;  // taps, and the row of the last of them

  __device__ void begin(const Tap<float>* taps, int32_t count) {
    left = count;
    if (count > 0) pixel = taps[count - 1].pixel;
  }
  __device__ float at(int32_t y, const Tap<float>* taps) {
    if (pixel != y) return 0;
    const float weight = taps[--left].weight;
    pixel = left > 0 ? taps[left - 1].pixel : -1;
    return weight;
  }
};

template <typename S>
struct MatmulShared {
  union {
    // Rows of the map, their 16-byte chunks permuted so that no two rows of a matrix share banks.
    alignas(16) S rows[kStages][kTilePixels][kTileChannels];
    // wx of each warp's boxes, high and low, padded against bank conflicts; in registers before rows come.
    alignas(16) S weights[kMatmulThreads / 32][2][kWarpBoxes][kTilePixels + 8];
  };
  int32_t box[kTileBoxes], image[kTileBoxes];
  unsigned reads[kMostRows / 32], reads_x;  // rows that some box reads, and whether one reads this stretch
  uint16_t row[kMostRows];
  int rows_read;
};

// Fills shared.row with the rows that boxes of the image read, from below.
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
    const int rows = __shfl_sync(kAllLanes, at, 31);
    if (thread == 31) shared.rows_read = rows;
    at = rows - at + __popc(bits);
    for (; bits != 0; bits &= bits - 1) {
      shared.row[--at] = static_cast<uint16_t>(32 * thread + __ffs(static_cast<int>(bits)) - 1);
    }
  }
  __syncthreads();
}

// The left sides of a warp's products, of 8 boxes each: wx of those of the image at pixels [first, first +
// kTilePixels), high in rows 0 to 7, low in rows 8 to 15. readers: bit 4 g + s where box g
// has weights in stretch s, of 16 pixels. Returns those stretches.
template <typename S>
__device__ unsigned load_weights(const Tables<float>& tables, int32_t image, int32_t first,
                                 MatmulShared<S>& shared, uint32_t (&left)[2][kSteps][4],
                                 unsigned (&readers)[2]) {
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
  for (int u = 0; u < 2; ++u) {
    readers[u] = 0;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      uint32_t any = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * u, column = 16 * s + 2 * (lane % 4) + 8 * (i / 2);
        left[u][s][i] = *reinterpret_cast<const uint32_t*>(&weights[i % 2][row][column]);
        any |= left[u][s][i];
      }
      unsigned reads = __ballot_sync(kAllLanes, any != 0);
      reads |= reads >> 1;
      reads |= reads >> 2;
      readers[u] |= (reads & kFirstLanes) << s;
      if (reads != 0) steps |= 1u << s;
    }
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
    copy_async(target + first * kTileChannels, source + first * stride, valid);
  }
}

// sum += wy * (wx F[y]) for a warp's boxes. weight: wy of this lane's two boxes.
template <typename S>
__device__ void add_row(const S (&row)[kTilePixels][kTileChannels], const uint32_t (&left)[2][kSteps][4],
                        const unsigned (&readers)[2], const float (&weight)[2], float (&sum)[kTiles][4]) {
  constexpr int kVec = 16 / sizeof(S), kChunks = kTileChannels / kVec;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  unsigned here[2];  // of the readers, those that read this row: of a box all lanes or none
  for (int u = 0; u < 2; ++u) here[u] = readers[u] & __ballot_sync(kAllLanes, weight[u] != 0);
  if ((here[0] | here[1]) == 0) return;
#pragma unroll
  for (int first = 0; first < kTiles; first += 2) {
    float product[2][2][4] = {};  // of boxes, of channels
    const int chunk = lane % 16 * kTileChannels + ((first + lane / 16) ^ lane % kChunks) * kVec;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const bool reads[2] = {(here[0] & kFirstLanes << s) != 0, (here[1] & kFirstLanes << s) != 0};
      if (!reads[0] && !reads[1]) continue;
      uint32_t features[4];
      load_transposed(features, &row[16 * s][0] + chunk);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        if (!reads[u]) continue;
        multiply<S>(product[u][0], left[u][s], features[0], features[1]);
        multiply<S>(product[u][1], left[u][s], features[2], features[3]);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&both)[4] = product[i / 2][n];
        sum[first + n][i] += weight[i / 2] * (both[i % 2] + both[i % 2 + 2]);
      }
    }
  }
}

// A block: kTileBoxes boxes, in the order of the groups, and kTileChannels channels.
template <typename S>
__global__ void __launch_bounds__(kMatmulThreads, 2)
    products_kernel(Gather<S> op, const int32_t* order, const int64_t* count) {
  __shared__ MatmulShared<S> shared;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
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
  const int mine = warp * kWarpBoxes + lane / 4;  // and 8 further on

  float sum[kTiles][4] = {};
  for (int slot = 0; slot < kTileBoxes && shared.box[slot] >= 0;) {  // image after image, mostly one
    list_rows(op.tables, shared.image[slot], shared);
    const int rows = shared.rows_read;
    for (int32_t first = 0; first < width; first += kTilePixels) {
      const int32_t image = shared.image[slot];  // not kept: registers are few
      uint32_t left[2][kSteps][4];
      unsigned readers[2];
      const unsigned steps = load_weights(op.tables, image, first, shared, left, readers);
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
        float weight[2];
        for (int u = 0; u < 2; ++u) {
          weight[u] = weights[u].at(shared.row[i], op.tables.y.taps(shared.box[mine + 8 * u]));
        }
        add_row(shared.rows[i % kStages], left, readers, weight, sum);
      }
      __syncthreads();
    }
    for (const int32_t image = shared.image[slot]; slot < kTileBoxes && shared.image[slot] == image;) ++slot;
  }

  bool finite = true;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t box = shared.box[mine + 8 * half], c = 8 * n + 2 * static_cast<int32_t>(threadIdx.x % 4);
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
    if (box < 0 || c >= channels) continue;
    S* const to = op.out.at(box, 0, 0, first_channel + c);
    if (!regions::finite(to_acc(*to))) *to = op.value(box, 0, 0, first_channel + c);
  }
}

// Whether large boxes may be products: 16-bit features in vectors, not normalised, on maps that are not huge.
template <typename S>
bool has_products(const Gather<S>& op) {
  return kHasTensorCores<S> && op.scale == nullptr && op.maps.images > 0 &&
         op.maps.level[0].height <= kMostRows && in_vectors<kMapVec<S>>(op.maps, op.channels) &&
         in_vectors<kMapVec<S>>(op.out, op.channels);
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
      launch(products_kernel<S>, grid, kMatmulThreads, 0, stream, op, products.order,
             products.images.begin + products.images.count);
    }
  }
  gather(op, {}, boxes, stream);
}

}  // namespace cfmvit::kernels
