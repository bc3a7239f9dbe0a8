// Sums over the rows of a matrix in an order that its shape alone decides.
#pragma once

#include "kernels/for_each.cuh"
#include "kernels/vectors.cuh"

namespace cfmvit::kernels {

// How many partial sums a sum over `rows` rows is split into, so that `owners` threads times their number
// fill a GPU, and a grid takes them. It depends on shapes only, so the bits are the same on every GPU.
inline int64_t num_partials(int64_t rows, int64_t owners) {
  constexpr int64_t kWanted = 1 << 17;
  const int64_t wanted = ceil_div(kWanted, owners < 1 ? 1 : owners), most = ceil_div(rows, 4);
  const int64_t partials = wanted < kMostBlocksYZ ? wanted : kMostBlocksYZ;
  return partials < most ? partials : most < 1 ? 1 : most;
}

// out[p, c] = sum of in[r, c] over the rows r of partial sum p; in (rows, columns), out (partials, columns).
// A thread has V columns; each threadIdx.y adds every blockDim.y-th row, and their sums are added in order.
template <typename In, typename Out, int V>
__global__ void __launch_bounds__(kThreads)
    column_sums_kernel(const In* in, int64_t stride, Out* out, int64_t rows, int64_t rows_per_partial,
                       int64_t columns) {
  __shared__ acc_t<In> sums[kThreads][V];
  const int64_t c = (int64_t{blockIdx.x} * kLanes + threadIdx.x) * V, first = blockIdx.y * rows_per_partial;
  const int64_t count = first + rows_per_partial < rows ? rows_per_partial : rows - first;
  acc_t<In> sum[V] = {};
  if (c < columns) {
    const In* at = in + (first + threadIdx.y) * stride + c;
    const int64_t step = blockDim.y * stride;
#pragma unroll 8
    for (int64_t r = threadIdx.y; r < count; r += blockDim.y, at += step) {
      const Vec<In, V> some = *reinterpret_cast<const Vec<In, V>*>(at);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += some[v];
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) sums[threadIdx.y * kLanes + threadIdx.x][v] = sum[v];
  __syncthreads();
  if (threadIdx.y != 0 || c >= columns) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    for (unsigned y = 1; y < blockDim.y; ++y) sum[v] += sums[y * kLanes + threadIdx.x][v];
    from_acc(sum[v], out[blockIdx.y * columns + c + v]);
  }
}

// One launch for as many partial sums as a grid takes.
template <typename In, typename Out>
void column_sums(const In* in, int64_t stride, Out* out, int64_t rows, int64_t rows_per_partial,
                 int64_t columns, cudaStream_t stream) {
  if (columns == 0) return;
  const int64_t partials = rows > 0 ? ceil_div(rows, rows_per_partial) : 1;
  unsigned across = 1;
  while (across < kThreads / kLanes && across < rows_per_partial) across *= 2;
  constexpr int kWord = sizeof(In) < 4 ? 4 / sizeof(In) : 1;
  dispatch_vec<kWord>(columns, {in}, {stride}, {sizeof(In)}, [&](auto v) {
    constexpr int V = decltype(v)::value;
    for (int64_t first = 0; first < partials; first += kMostBlocksYZ) {
      const int64_t left = partials - first, skipped = first * rows_per_partial;
      launch(column_sums_kernel<In, Out, V>,
             grid_size(ceil_div(columns, kLanes * V), left < kMostBlocksYZ ? left : kMostBlocksYZ),
             dim3(kLanes, across), 0, stream, in + skipped * stride, stride, out + first * columns,
             rows - skipped, rows_per_partial, columns);
    }
  });
}

template <typename Real>
struct Add {
  Real* out;
  const Real* in;  // (arrays, count)
  int64_t arrays, count;

  __device__ void operator()(int64_t i) const {
    Real sum = out[i];
    for (int64_t a = 0; a < arrays; ++a) sum += in[a * count + i];
    out[i] = sum;
  }
};

// out += each of the arrays in turn
template <typename Real>
void add(Real* out, const Real* in, int64_t arrays, int64_t count, cudaStream_t stream) {
  for_each(count, Add<Real>{out, in, arrays, count}, stream);
}

}  // namespace cfmvit::kernels
