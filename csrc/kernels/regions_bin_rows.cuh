// RoIAlign of 16-bit features on tensor cores. The bins of a row read the same rows of the map and, next to
// one another, the same columns, so a row of bins is a product of weights by features,
//   out[q, c] = sum over (y, x) of (wy[p, y] wx[q, x]) F[y, x, c].
//
// A warp multiplies 4 rows by 4 columns of the map at a time (of sampling ratio 2 a row of bins has no more
// rows), for 8 bins. Weights are the sum of two 16-bit numbers, so that results are as exact as features are:
// the high ones are rows 0 to 7 of the left side, the low ones rows 8 to 15. Features need no shared memory
// on their way: which pixels are k of the product, and which channels its columns, is free, so lane 4 g + t
// reads column t of the 4 rows, 16 bytes of channels, and has results of neighbouring channels to write.
#pragma once

#include "kernels/regions_gather.cuh"
#include "kernels/tensor_cores.cuh"

namespace cfmvit::kernels {

constexpr int kRowWarps = 4;                    // of a block; with three blocks a thread has 168 registers
constexpr int kRowBins = 8, kRowColumns = 256;  // bins of a warp; columns that they may read
constexpr int kRowPixels = 4;                   // rows, and columns, of the map at a time
constexpr int kRowStretch = 64, kRowStretches = 2, kRowChannels = kRowStretch * kRowStretches,
              kRowResults = kRowChannels / 4;

// What a row of bins reads along x, the same for all of a box.
struct BinColumns {
  int32_t count;                            // columns, in fours
  int32_t odd;                              // not 0: they do not fit, or do not ascend (inverted boxes)
  int32_t pixel[kRowColumns + kRowPixels];  // ascending; at the end the last again
  float weight[kRowBins][kRowColumns + kRowPixels];  // rows that lie 4 banks apart
};

// The pixels that taps [begin, end) read, each once, by one warp.
__device__ inline void list_pixels(const Tap<float>* taps, int32_t begin, int32_t end, BinColumns& columns) {
  const int lane = static_cast<int>(threadIdx.x);
  int32_t count = 0, highest = -1;
#pragma unroll 1
  for (; begin < end; begin += 32) {
    const int32_t pixel = begin + lane < end ? taps[begin + lane].pixel : -1;
    int32_t most = max(pixel, highest);  // of the lanes up to this
    for (int step = 1; step < 32; step *= 2) {
      const int32_t other = __shfl_up_sync(kAllLanes, most, step);
      if (lane >= step) most = max(most, other);
    }
    const int32_t before = __shfl_up_sync(kAllLanes, most, 1);
    const bool is_new = pixel > (lane > 0 ? before : highest);
    const unsigned found = __ballot_sync(kAllLanes, is_new);
    const int32_t at = count + __popc(found & ((1u << lane) - 1));
    if (is_new && at < kRowColumns) columns.pixel[at] = pixel;
    count += __popc(found);
    highest = __shfl_sync(kAllLanes, most, 31);
  }
  const bool fit = count <= kRowColumns;
  if (fit && lane < kRowPixels) columns.pixel[count + lane] = highest;
  if (lane == 0) {
    columns.count = fit ? (count + kRowPixels - 1) / kRowPixels * kRowPixels : 0;
    columns.odd = !fit;
  }
}

// The columns of bins [first, first + bins) of a box, by the whole block.
inline __device__ void list_columns(const AxisTables<float>& tables, int64_t box, int32_t first, int32_t bins,
                                    BinColumns& columns) {
  const int lane = static_cast<int>(threadIdx.x);
  const int32_t* const begin = tables.begins(box) + first;
  const Tap<float>* const taps = tables.taps(box);
  __syncthreads();  // of those who read the columns before
  if (threadIdx.y == 0) list_pixels(taps, begin[0], begin[bins], columns);
  __syncthreads();
  for (int bin = threadIdx.y; bin < kRowBins; bin += blockDim.y) {
    for (int32_t i = lane; i < columns.count; i += 32) columns.weight[bin][i] = 0;
    __syncwarp();
    const int32_t end = begin[min(bin + 1, bins)];
    for (int32_t i = begin[min(bin, bins)] + lane; i < end; i += 32) {
      const Tap<float> tap = taps[i];
      int32_t at = 0;
      for (int32_t last = columns.count - 1; at < last;) {
        const int32_t middle = (at + last) / 2;
        columns.pixel[middle] < tap.pixel ? at = middle + 1 : last = middle;
      }
      if (at < columns.count && columns.pixel[at] == tap.pixel) {
        columns.weight[bin][at] = tap.weight;
      } else {
        atomicOr(&columns.odd, 1);
      }
    }
  }
  __syncthreads();
}

// sum[8 s + e] += the products of row p of bins, for element e of each lane's vector in stretch s of
// channels.
template <typename S>
__device__ void multiply_bins(const Source<S>& from, int32_t p, const BinColumns& columns,
                              float (&sum)[kRowChannels / 8][4]) {
  constexpr int V = kMapVec<S>, K = kRowPixels;
  const int lane = static_cast<int>(threadIdx.x), bin = lane / 4;
  const int32_t end = from.begin_y[p + 1];
  for (int32_t i = from.begin_y[p]; i < end; i += K) {
    const S* row[K];
    float weight_y[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Tap<float> y = from.taps_y[min(i + k, end - 1)];
      row[k] = added_up(from.data + y.pixel * from.row);
      weight_y[k] = i + k < end ? y.weight : 0;
    }
    for (int32_t j = lane % 4; j < columns.count; j += K) {
      const uint64_t column = uint64_t{static_cast<uint32_t>(columns.pixel[j])} * from.pixel;
      Vec<S, V> value[kRowStretches][K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const S* const pixel = row[k] + column;
#pragma unroll
        for (int s = 0; s < kRowStretches; ++s) {
          value[s][k] = *reinterpret_cast<const Vec<S, V>*>(pixel + s * kRowStretch);
        }
      }
      const float weight_x = columns.weight[bin][j];
      uint32_t weights[4];  // high and low of the first two rows, then of the others
#pragma unroll
      for (int k = 0; k < K; k += 2) {
        S high[2], low[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float weight = weight_y[k + i] * weight_x;
          from_acc(weight, high[i]);
          from_acc(weight - to_acc(high[i]), low[i]);
        }
        weights[k] = pair_of(high[0], high[1]);
        weights[k + 1] = pair_of(low[0], low[1]);
      }
#pragma unroll
      for (int s = 0; s < kRowStretches; ++s) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const auto pair = [&](int k) {
            return pair_in(value[s][k].words[e / 2], value[s][k + 1].words[e / 2], e % 2);
          };
          multiply<S>(sum[V * s + e], weights, pair(0), pair(2));
        }
      }
    }
  }
}

// A block: a box, kRowChannels channels at a time; a warp: rows of bins. tile_rows: those of a tile in shared
// memory, (kRowChannels, rows * bins), that goes where results are not in vectors; 0 where they are.
template <typename S>
__global__ void __launch_bounds__(32 * kRowWarps, 3) bin_rows_kernel(Gather<S> op, int32_t tile_rows) {
  constexpr int V = kMapVec<S>;
  __shared__ BinColumns columns;
  const int64_t box = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x), bin = lane / 4, part = lane % 4;
  const int32_t bins_y = op.tables.y.bins, bins_x = op.tables.x.bins, tile_bins = tile_rows * bins_x;
  if (op.skips(box)) return;
  S* const tile = dynamic_shared<S>();
  const int32_t whole = (op.channels + V - 1) / V * V;
  int32_t listed = -1;
  for (int32_t mine = blockIdx.y * kRowChannels; mine < op.channels; mine += gridDim.y * kRowChannels) {
    const int32_t c = min(mine, whole - kRowChannels);  // the last may share channels with those before
    Source<S> from{};
    // Columns 2 t and 2 t + 1 of a product are this lane's results: channels 8 t and 8 t + 32 on.
    if (op.tables.map[box] >= 0) from = op.source(box, c + (bin / 2 + bin % 2 * 4) * V);
    for (int32_t top = 0, bottom; top < bins_y; top = bottom) {
      bottom = tile_rows == 0 ? bins_y : min(top + tile_rows, bins_y);
      for (int32_t q = 0; q < bins_x; q += kRowBins) {
        const int32_t bins = min(kRowBins, bins_x - q);
        if (listed != q) list_columns(op.tables.x, box, q, bins, columns);
        listed = q;
        for (int32_t p = top + threadIdx.y; p < bottom; p += blockDim.y) {
          float sum[kRowChannels / 8][4] = {};
          if (from.data != nullptr) multiply_bins(from, p, columns, sum);
          // Element e of a lane's results: its channel and where it goes.
          const auto channel_of = [&](int e) { return c + e / V * (kRowStretch / 2) + part * V + e % V; };
          const auto place = [&](int e) {
            return tile_rows == 0 ? op.out.at(box, p, q + bin, channel_of(e))
                                  : tile + (channel_of(e) - c) * tile_bins + (p - top) * bins_x + q + bin;
          };
          float not_finite = 0;
#pragma unroll
          for (int first = 0; first < kRowResults; first += V) {
            Vec<S, V> result{};
#pragma unroll
            for (int e = 0; e < V; ++e) {
              const float (&both)[4] = sum[first / 2 / V * V + e];
              const float x = both[first / V % 2] + both[first / V % 2 + 2];
              result.set(e, x);
              not_finite += 0 * x;
            }
            if (bin >= bins || channel_of(first) < mine) continue;
            S* const to = place(first);
            if (tile_rows == 0) {
              *reinterpret_cast<Vec<S, V>*>(to) = result;
            } else {
#pragma unroll
              for (int e = 0; e < V; ++e) to[e * tile_bins] = result.element(e);
            }
          }
          // Zero times what is not finite is NaN: then pixels that a bin does not read matter.
          const bool again = bin < bins && (columns.odd != 0 || not_finite != 0);
#pragma unroll 1
          for (int e = 0; again && e < kRowResults; ++e) {
            S* const to = place(e);
            if (channel_of(e) < mine || (columns.odd == 0 && regions::finite(to_acc(*to)))) continue;
            *to = op.value(box, p, q + bin, channel_of(e));
          }
          __syncwarp();  // for the products of the next row
        }
      }
      if (tile_rows == 0) continue;
      __syncthreads();
      store_tile(op.out, tile + (mine - c) * tile_bins, box, mine,
                 min(kRowChannels - (mine - c), op.channels - mine), top * bins_x, (bottom - top) * bins_x,
                 tile_bins, bins_x);
      __syncthreads();
    }
  }
}

// Writes the bins of all boxes. packed: of packed_for.
template <typename S>
void align(Gather<S> op, const Pyramid<S>& packed, int64_t boxes, cudaStream_t stream) {
  if constexpr (kHasTensorCores<S>) {
    constexpr int V = kMapVec<S>;
    const int64_t row = op.tables.x.bins * kRowChannels * int64_t{sizeof(S)};
    const bool direct = in_vectors<V>(op.out, op.channels);
    if ((packed.levels > 0 || in_vectors<V>(op.maps, op.channels)) && (direct || row <= kGatherTileBytes) &&
        whole_vectors<S>(op.channels) >= kRowChannels) {
      if (packed.levels > 0) {
        pack(op.maps, packed, op.channels, stream);
        op.maps = as_constant(packed);
      }
      const int32_t bins_y = op.tables.y.bins;
      const auto tile_rows =
          direct ? 0 : static_cast<int32_t>(std::min<int64_t>(bins_y, kGatherTileBytes / row));
      // A block lists its columns once for all channels, unless boxes are too few to fill a GPU.
      constexpr int64_t kMany = 1024;
      const int64_t stretches = boxes < kMany ? ceil_div(op.channels, kRowChannels) : 1;
      return launch(bin_rows_kernel<S>, grid_size(boxes, std::min(stretches, kMostBlocksYZ)),
                    dim3(32, static_cast<unsigned>(std::min(bins_y, kRowWarps))),
                    static_cast<size_t>(tile_rows * row), stream, op, tile_rows);
    }
  }
  gather(op, packed, boxes, stream);
}

}  // namespace cfmvit::kernels
