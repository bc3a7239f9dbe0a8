#include "cpu/regions_work_items.h"

#include "cpu/regions_loops.h"

namespace cfmvit::regions {
namespace {

constexpr int64_t kWorkOfBox = 4096;              // to find its pixels and weights
constexpr int64_t kSlabBytes = int64_t{1} << 19;  // rows of a gradient that stay in a core's L2

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs task(begin, end) for ranges of [0, tasks) over threads, or in this one where all of them take less
// than waking the others; a range keeps its scratch memory. work: multiply-adds, roughly.
template <typename Task>
void for_ranges(int64_t tasks, int64_t work, const Task& task) {
  constexpr int64_t kWorthThreads = int64_t{1} << 18;
  if (tasks > 0) torch::stable::parallel_for(0, tasks, work < kWorthThreads ? tasks : 1, task);
}

// Blocks of channels: full ones, then what is left over.
template <typename T>
struct Blocks {
  int64_t channels;
  int64_t count() const { return ceil_div(channels, kBlock<T>); }
  int64_t first(int64_t i) const { return i * kBlock<T>; }
  int64_t size(int64_t i) const { return std::min(kBlock<T>, channels - first(i)); }
};

}  // namespace

template <typename T>
Boxes<T>::Boxes(const char* op, const Tensor& rois, const int64_t* level, const std::vector<Size>& levels,
                const Sampling& sampling, bool transposed)
    : op_(op), maps_(cfmvit::product({static_cast<int64_t>(levels.size()), levels[0].batch})) {
  const int64_t count = rois.size(0);
  rois.scalar_type() == ScalarType::Double
      ? build(data<const double>(rois), count, level, levels, sampling, transposed)
      : build(data<const float>(rois), count, level, levels, sampling, transposed);
}

template <typename T>
template <typename Coordinate>
void Boxes<T>::build(const Coordinate* rois, int64_t count, const int64_t* level,
                     const std::vector<Size>& levels, const Sampling& sampling, bool transposed) {
  const int64_t batch = levels[0].batch;
  std::vector<int64_t> map(count);
  begin_.assign(maps_ + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    const Coordinate image = rois[5 * i];
    CFMVIT_CHECK(image >= 0 && image < static_cast<Coordinate>(batch), op_,
                 ": boxes must have an image number in [0, ", batch, ") first, got ", image);
    const int64_t of = level == nullptr ? 0 : level[i];
    CFMVIT_CHECK(of >= 0 && of < static_cast<int64_t>(levels.size()), op_, ": levels must be in [0, ",
                 levels.size(), "), got ", of);
    map[i] = of * batch + static_cast<int64_t>(image);
    ++begin_[map[i] + 1];
  }
  for (int64_t i = 0; i < maps_; ++i) begin_[i + 1] += begin_[i];

  tables_.resize(ceil_div(count, kBoxesPerTable));
  Interrupt interrupt;
  for_ranges(static_cast<int64_t>(tables_.size()), kWorkOfBox * count, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end && !interrupt.requested(); ++t) {
      const int64_t last = std::min(count, (t + 1) * kBoxesPerTable);
      for (int64_t i = t * kBoxesPerTable; i < last; ++i) {
        const Size& on = levels[map[i] / batch];
        tables_[t].add(rois + 5 * i, static_cast<Coordinate>(on.scale), on.height, on.width, sampling,
                       transposed);
      }
    }
  });
  interrupt.check(op_);
  boxes_.resize(count);
  std::vector<int64_t> next(begin_.begin(), begin_.end() - 1);
  for (int64_t i = 0; i < count; ++i) {
    const Box<T> box = tables_[i / kBoxesPerTable].box(i % kBoxesPerTable, i);
    boxes_[next[map[i]]++] = box;
    taps_ += box.y.pixels * box.x.pixels;
  }
}

template <typename T, typename S>
void forward(const Boxes<T>& boxes, const std::vector<Map<T, const S>>& maps, int64_t channels,
             const Bins<S>& out) {
  const Blocks<T> blocks{channels};
  // Where maps and blocks are fewer than threads, the boxes of a map are shared out as well.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t splits = ceil_div(2 * threads, std::max<int64_t>(boxes.maps() * blocks.count(), 1));
  const int64_t tasks = boxes.maps() * splits * blocks.count();
  Interrupt interrupt;
  for_ranges(tasks, channels * (boxes.taps() + out.y * out.x), [&](int64_t begin, int64_t end) {
    Scratch<T> scratch;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks.count(), split = i / blocks.count() % splits,
                    map = i / blocks.count() / splits;
      const int64_t first = boxes.count(map) * split / splits, last = boxes.count(map) * (split + 1) / splits;
      if (first == last) continue;
      forward_item<T, S>(
          maps[map], out,
          {boxes.of_map(map) + first, last - first, blocks.first(block), blocks.size(block), &interrupt},
          scratch);
    }
  });
  interrupt.check(boxes.op());
}

template <typename T, typename S, typename G>
void backward(const Boxes<T>& boxes, const std::vector<Map<T, S>>& maps, int64_t channels,
              const Bins<const G>& grad) {
  const Blocks<T> blocks{channels};
  struct Band {
    int64_t map, begin, end;
  };
  std::vector<Band> bands;
  int64_t pixels = 0;
  for (int64_t map = 0; map < boxes.maps(); ++map) {
    const auto row_bytes = maps[map].width * kBlock<T> * static_cast<int64_t>(sizeof(T));
    const int64_t rows = std::max<int64_t>(1, kSlabBytes / row_bytes);
    pixels += maps[map].height * maps[map].width;
    for (int64_t y = 0; y < maps[map].height; y += rows)
      bands.push_back({map, y, std::min(y + rows, maps[map].height)});
  }
  const int64_t tasks = static_cast<int64_t>(bands.size()) * blocks.count();
  Interrupt interrupt;
  for_ranges(tasks, channels * (boxes.taps() + pixels), [&](int64_t begin, int64_t end) {
    Scratch<T> scratch;
    for (int64_t i = begin; i < end; ++i) {
      const Band& band = bands[i % bands.size()];
      const int64_t block = i / static_cast<int64_t>(bands.size());
      backward_item<T, S, G>(grad, maps[band.map], band.begin, band.end,
                             {boxes.of_map(band.map), boxes.count(band.map), blocks.first(block),
                              blocks.size(block), &interrupt},
                             scratch);
    }
  });
  interrupt.check(boxes.op());
}

template <typename T, typename S>
T inverse_norm(const S* token, int64_t stride, int64_t channels) {
  return CFMVIT_REGIONS(token_scale<T, S>)(token, stride, channels);
}

template <typename T, typename S>
void unnormalize(const S* token, int64_t stride, int64_t channels, const T* grad, S* out) {
  CFMVIT_REGIONS(unnormalize_token<T, S>)(token, stride, channels, grad, out);
}

template class Boxes<float>;
template class Boxes<double>;

#define CFMVIT_INSTANTIATE(T, S)                                                                         \
  template void forward(const Boxes<T>&, const std::vector<Map<T, const S>>&, int64_t, const Bins<S>&);  \
  template void backward(const Boxes<T>&, const std::vector<Map<T, S>>&, int64_t, const Bins<const S>&); \
  template T inverse_norm(const S*, int64_t, int64_t);                                                   \
  template void unnormalize(const S*, int64_t, int64_t, const T*, S*);
CFMVIT_INSTANTIATE(float, float)
CFMVIT_INSTANTIATE(double, double)
CFMVIT_INSTANTIATE(float, BFloat16)
CFMVIT_INSTANTIATE(float, Half)
#undef CFMVIT_INSTANTIATE
// Where tokens are normalised, their gradient exists in float32 first.
template void backward(const Boxes<float>&, const std::vector<Map<float, float>>&, int64_t,
                       const Bins<const BFloat16>&);
template void backward(const Boxes<float>&, const std::vector<Map<float, float>>&, int64_t,
                       const Bins<const Half>&);

}  // namespace cfmvit::regions
