// The launchers of the regions family.
#include "cases.h"
#include "kernels/regions_bin_rows.cuh"
#include "kernels/regions_gather.cuh"
#include "kernels/regions_matmul.cuh"
#include "kernels/regions_norms.cuh"
#include "kernels/regions_scatter.cuh"
#include "kernels/regions_scores.cuh"

namespace cfmvit::emulation {

using regions::Sampling;

// sampling: P, Q, ratio, aligned
Sampling sampling_of(const Job& job, bool merge) {
  const auto* n = job.data<int64_t>("sampling");
  return {n[0], n[1], n[2], n[3] != 0, merge};
}

// The levels "map0", "map1", ... (B, C, H, W); their scales in "scales".
template <typename S, typename Array>
kernels::Pyramid<S> pyramid_of(const Job& job, const std::vector<Array>& maps) {
  kernels::Pyramid<S> out{};
  out.levels = static_cast<int>(maps.size());
  out.images = maps[0].size(0);
  for (int l = 0; l < out.levels; ++l) {
    const auto& x = maps[l];
    out.level[l] = {x.template data<S>(),
                    x.size(2),
                    x.size(3),
                    x.stride(0),
                    x.stride(2),
                    static_cast<int32_t>(x.stride(3)),
                    x.stride(1),
                    job.data<double>("scales")[l]};
  }
  return out;
}

template <typename S>
kernels::Bins<S> bins_of(const Array& x) {
  return {x.data<S>(), x.stride(0), x.stride(2), x.stride(3), x.stride(1)};
}

std::vector<Array> maps_of(const Job& job) {
  std::vector<Array> maps;
  for (int l = 0; job.has("map" + std::to_string(l)); ++l) maps.push_back(job["map" + std::to_string(l)]);
  return maps;
}

// A channels-last or a plain output (B, C, H, W), as an array with strides.
template <typename S>
Array output_map(Job& job, const std::string& name, const Sizes& size, bool channels_last) {
  job.output<S>(name, channels_last ? Sizes{size[0], size[2], size[3], size[1]} : size);
  Array out = job.outputs[name];
  const int64_t c = size[1], h = size[2], w = size[3];
  out.sizes = size;
  out.strides = channels_last ? Sizes{h * w * c, 1, w * c, c} : Sizes{c * h * w, h * w, w, 1};
  return out;
}

// Tables for the job's boxes; `carve` takes more of the workspace.
template <typename T, typename S, typename Carve>
kernels::Tables<T> tables_for(Job& job, const kernels::Pyramid<S>& maps, const Sampling& sampling,
                              const Carve& carve) {
  const Array& rois = job["rois"];
  int64_t height = 0, width = 0;
  for (int l = 0; l < maps.levels; ++l) {
    height = std::max(height, maps.level[l].height);
    width = std::max(width, maps.level[l].width);
  }
  kernels::Workspace counted;
  kernels::tables_of<T>(counted, rois.size(0), sampling, height, width);
  carve(counted);
  kernels::Workspace workspace(reinterpret_cast<char*>(job.scratch<uint8_t>(counted.bytes())));
  const auto tables = kernels::tables_of<T>(workspace, rois.size(0), sampling, height, width);
  carve(workspace);
  const auto make = [&](auto zero) {
    using Coordinate = decltype(zero);
    const kernels::Boxes<Coordinate> boxes{rois.data<const Coordinate>(), job.data<int64_t>("levels"),
                                           rois.size(0)};
    kernels::make_tables(boxes, maps, sampling, tables, nullptr);
  };
  rois.type == "float64" ? make(double{}) : make(float{});
  return tables;
}

KERNEL(align) {
  with_floating(job["map0"], [&](auto zero) {
    using S = decltype(zero);
    const Sampling sampling = sampling_of(job, false);
    const auto maps = pyramid_of<const S>(job, maps_of(job));
    const int64_t boxes = job["rois"].size(0), channels = job["map0"].size(1);
    kernels::Pyramid<S> packed;
    const auto tables = tables_for<acc_t<S>>(job, maps, sampling, [&](kernels::Workspace& workspace) {
      packed = kernels::packed_for<S>(workspace, maps, boxes, sampling.bins_y * sampling.bins_x, channels);
    });
    const Array out = output_map<S>(job, "out", {boxes, channels, sampling.bins_y, sampling.bins_x},
                                    job.integer("channels_last"));
    kernels::align<S>({maps, nullptr, tables, INT64_MAX, bins_of<S>(out), static_cast<int32_t>(channels)},
                      packed, boxes, nullptr);
  });
}

// sizes: H, W of each level
KERNEL(align_backward) {
  const Array& grad = job["grad"];
  with_floating(grad, [&](auto zero) {
    using S = decltype(zero);
    const Sampling sampling = sampling_of(job, false);
    std::vector<Array> outs;
    for (int64_t l = 0; l < job["scales"].size(0); ++l) {
      const auto* size = job.data<int64_t>("sizes") + 2 * l;
      outs.push_back(output_map<S>(job, "map" + std::to_string(l),
                                   {job.integer("images"), grad.size(1), size[0], size[1]},
                                   job.integer("channels_last")));
    }
    const auto maps = pyramid_of<S>(job, outs);
    const auto bins = bins_of<const S>(grad);
    kernels::Readers readers;
    kernels::Pyramid<S> packed;
    const auto tables = tables_for<acc_t<S>>(job, maps, sampling, [&](kernels::Workspace& workspace) {
      readers = kernels::readers_of(workspace, grad.size(0), maps.images * maps.levels);
      packed = kernels::packed_for<S>(workspace, bins, grad.size(0), sampling, grad.size(1));
    });
    kernels::find_readers(tables, grad.size(0), readers, nullptr);
    kernels::scatter<S, S>(maps, tables, readers, bins, packed, grad.size(0),
                           static_cast<int32_t>(grad.size(1)), nullptr);
  });
}

// Boxes of groups (R,), or -1, by group and by key (R,) in each; -1 after them.
KERNEL(sort) {
  const int64_t boxes = job["group"].size(0), count = job.integer("groups");
  const kernels::Groups groups{job.scratch<int32_t>(boxes), job.output<int64_t>("begin", {count + 1}), count};
  int32_t* const out = job.output<int32_t>("out", {boxes});
  std::fill_n(out, boxes, -1);
  kernels::make_groups(job.data<int32_t>("group"), boxes, groups, nullptr);
  kernels::sort_groups(job.data<int32_t>("key"), groups, boxes, out, nullptr);
}

// tokens (B, N, C) as the one level of a pyramid; sizes: H, W
template <typename S>
kernels::Pyramid<S> grid_of(const Job& job, const Array& tokens, int64_t prefix) {
  const auto* size = job.data<int64_t>("sizes");
  kernels::Pyramid<S> out{};
  out.levels = 1;
  out.images = tokens.size(0);
  out.level[0] = {tokens.data<S>() + prefix * tokens.stride(1),
                  size[0],
                  size[1],
                  tokens.stride(0),
                  size[1] * tokens.stride(1),
                  static_cast<int32_t>(tokens.stride(1)),
                  tokens.stride(2),
                  *job.data<double>("scales")};
  return out;
}

KERNEL(pool) {
  const Array& tokens = job["tokens"];
  with_floating(tokens, [&](auto zero) {
    using S = decltype(zero);
    const int64_t boxes = job["rois"].size(0), channels = tokens.size(2);
    const auto maps = grid_of<const S>(job, tokens, job.integer("prefix"));
    const int64_t pixels = maps.images * maps.level[0].height * maps.level[0].width;
    acc_t<S>* scale = nullptr;
    kernels::MatmulBoxes products;
    const bool normalize = job.integer("normalize");
    const auto tables =
        tables_for<acc_t<S>>(job, maps, sampling_of(job, true), [&](kernels::Workspace& workspace) {
          if (normalize) scale = workspace.take<acc_t<S>>(pixels);
          products = kernels::matmul_boxes_of(workspace, boxes, maps.images);
        });
    if (normalize) {
      kernels::for_each_warp(pixels, kernels::InverseNorms<S>{maps.level[0], scale, channels}, nullptr);
    }
    S* const out = job.output<S>("out", {boxes, channels});
    kernels::pool<S>(
        {maps, scale, tables, INT64_MAX, {out, channels, 0, 0, 1}, static_cast<int32_t>(channels)}, products,
        boxes, nullptr);
  });
}

// tokens: given where they were normalised
KERNEL(pool_backward) {
  const Array& grad = job["grad"];
  with_floating(grad, [&](auto zero) {
    using S = decltype(zero);
    using T = acc_t<S>;
    const int64_t images = job.integer("images"), channels = grad.size(1);
    const int64_t pixels = job.data<int64_t>("sizes")[0] * job.data<int64_t>("sizes")[1];
    const Sizes size{images, pixels, channels};
    const kernels::Bins<const S> bins{grad.data<const S>(), grad.stride(0), 0, 0, grad.stride(1)};
    job.output<S>("tokens", size);
    const auto view = [&](const std::string& name) {
      Array out = job.outputs[name];
      out.sizes = size;
      out.strides = {pixels * channels, channels, 1};
      return out;
    };
    const auto maps = grid_of<S>(job, view("tokens"), 0);
    const Sampling sampling = sampling_of(job, true);
    kernels::Readers readers;
    kernels::Pyramid<S> packed;
    const auto tables = tables_for<T>(job, maps, sampling, [&](kernels::Workspace& workspace) {
      readers = kernels::readers_of(workspace, grad.size(0), images);
      packed = kernels::packed_for<S>(workspace, bins, grad.size(0), sampling, channels);
    });
    kernels::find_readers(tables, grad.size(0), readers, nullptr);
    const auto scatter = [&](const auto& to) {
      kernels::scatter<S>(to, tables, readers, bins, packed, grad.size(0), static_cast<int32_t>(channels),
                          nullptr);
    };
    if (!job.has("tokens")) return scatter(maps);
    const T* const unit = job.output<T>("scratch unit", size);
    scatter(grid_of<T>(job, view("scratch unit"), 0));
    kernels::for_each_warp(images * pixels,
                           kernels::Unnormalize<S>{grid_of<const S>(job, job["tokens"], 0).level[0], unit,
                                                   maps.level[0], channels},
                           nullptr);
  });
}

// Products "detector" and "vlm" (R, 1 + n); "inverse" and "exponent" (1 + n,) of the texts, "inverse_<tower>"
// (R,), "scale" (2,), "sure" (R,).
KERNEL(scores) {
  const auto run = [&]<typename T, bool kBoth>(T, std::bool_constant<kBoth>) {
    constexpr int64_t kVec = 16 / sizeof(T), kTowers = kBoth ? 2 : 1;
    const int64_t rows = job["detector"].size(0), texts = job["detector"].size(1);
    const int64_t row = ((texts + kVec - 1) / kVec + 1) * kVec;
    kernels::Scores<T> op{};
    op.texts = static_cast<int32_t>(texts);
    op.regions = op.chunk = rows;
    op.row = row;
    op.products = job.scratch<T>(kTowers * rows * row);
    op.inverse = job.scratch<T>(kTowers * rows);
    const char* const names[]{"detector", "vlm"};
    for (int64_t i = 0; i < kTowers * rows; ++i) {
      const std::string tower = names[i % kTowers];
      const int64_t region = i / kTowers;
      const T* const from = job.data<T>(tower) + region * job[tower].stride(0);
      std::fill(std::copy(from, from + texts, op.products + i * row), op.products + (i + 1) * row, -INFINITY);
      op.inverse[i] = job.data<T>("inverse_" + tower)[region];
    }
    const auto padded = [&](const std::string& name, T pad) {
      T* const out = job.scratch<T>(row);
      std::fill(std::copy(job.data<T>(name), job.data<T>(name) + texts, out), out + row, pad);
      return out;
    };
    op.text_inverse = padded("inverse", 1);
    op.exponent = padded("exponent", T(0.5));
    op.scale = const_cast<T*>(job.data<T>("scale"));
    op.sure = const_cast<T*>(job.data<T>("sure"));
    op.renormalize = job.integer("renormalize") != 0;
    op.out = job.output<T>("out", {rows, texts - 1});
    kernels::scores<kBoth>(op, rows, nullptr);
  };
  const auto towers = [&](auto zero) {
    job.has("vlm") ? run(zero, std::true_type()) : run(zero, std::false_type());
  };
  job["detector"].type == "float64" ? towers(double{}) : towers(float{});
}

// Embeddings "detector" and "vlm" (R, C) and "texts" (1 + n, C) of any strides, staged for their products
// with the first "chunk" regions, then with the others while the first are scored; what else is prepared.
KERNEL(stage_scores) {
  const auto run = [&]<typename S, bool kBoth>(S, std::bool_constant<kBoth>) {
    using T = acc_t<S>;
    constexpr int64_t kVec = 16 / sizeof(T), kTowers = kBoth ? 2 : 1;
    const auto embeds = [&](const std::string& name) {
      const Array& x = job[name];
      return kernels::Embeds<S>{x.data<const S>(), x.stride(0), x.stride(1)};
    };
    const auto detector = embeds("detector"), vlm = embeds(kBoth ? "vlm" : "detector"),
               texts = embeds("texts");
    const int64_t rows = job["detector"].size(0), channels = job["detector"].size(1),
                  labels = job["texts"].size(0);
    const int64_t row = ((labels + kVec - 1) / kVec + 1) * kVec, chunk = job.integer("chunk");
    kernels::Scores<S> op{{detector, vlm},
                          channels,
                          std::min(kernels::vecs_of(detector, channels), kernels::vecs_of(vlm, channels)),
                          static_cast<int32_t>(labels),
                          rows,
                          chunk,
                          0,
                          job.scratch<S>(kTowers * chunk * channels),
                          job.scratch<T>(kTowers * chunk * row),
                          row,
                          job.output<T>("inverse", {rows, kTowers}),
                          job.output<T>("inverse_texts", {row}),
                          job.output<T>("exponents", {row}),
                          job.output<T>("scale", {2}),
                          job.has("objectness") ? job.output<T>("sure", {rows}) : nullptr,
                          true,
                          job.scratch<T>(rows * (labels - 1))};
    const T* const temperatures = job.data<T>("temperatures");
    kernels::prepare_scores(
        kernels::PrepareScores<S, kBoth>{op,
                                         texts,
                                         kernels::vecs_of(texts, channels),
                                         job.output<S>("staged_texts", {labels, channels}),
                                         job.data<T>("exponent"),
                                         1,
                                         {temperatures, temperatures + 1},
                                         job.data<T>("objectness"),
                                         1,
                                         job.real("power")},
        nullptr);
    S* const staged = job.output<S>("staged", {rows, kTowers, channels});
    for (; op.first < rows; op.first += chunk) {
      const int64_t count = std::min(chunk, rows - op.first);
      std::copy(op.staged, op.staged + kTowers * count * channels, staged + kTowers * op.first * channels);
      for (int64_t i = 0; i < kTowers * count; ++i) {
        std::fill(op.products + i * row, op.products + i * row + labels, T(i));
        for (int64_t j = labels; j < row; ++j) {
          if (op.products[i * row + j] != -INFINITY)
            throw std::runtime_error("what follows the texts is lost");
        }
      }
      kernels::scores<kBoth>(op, count, nullptr);
    }
  };
  with_floating(job["detector"], [&](auto zero) {
    job.has("vlm") ? run(zero, std::true_type()) : run(zero, std::false_type());
  });
}

}  // namespace cfmvit::emulation
