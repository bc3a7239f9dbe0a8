// Moving tokens on the CPU. Each output row has one owner, so nothing is added twice or
// atomically, and the bits are the same for any number of threads.
#include <cstring>
#include <tuple>

#include "cpu/rows.h"
#include "torch/dispatch.h"
#include "torch/masking_checks.h"
#include "torch/registration.h"
#include "torch/stable_abi.h"
#include "torch/tensor_views.h"

namespace cfmvit {
namespace {

// The inverse of an index (B, K): a list of the entries that name each of N tokens, in rising order.
class Inverse {
 public:
  Inverse(int64_t batch, int64_t num_tokens, int64_t entries)
      : num_tokens_(num_tokens),
        entries_(entries),
        head_(filled<int64_t>({batch, num_tokens}, -1)),
        next_(filled<int64_t>({batch, entries}, -1)) {}

  // Entries first..first+count-1 of the list are those of `index`. Call it for the last source first.
  void add(const Index& index, int64_t first, int64_t count, int64_t batch) {
    parallel(batch, count, [&](int64_t b) {
      for (int64_t j = count - 1; j >= 0; --j) {
        int64_t& head = head_[b * num_tokens_ + index(b, j)];
        next_[b * entries_ + first + j] = head;
        head = first + j;
      }
    });
  }
  int64_t first(int64_t b, int64_t n) const { return head_[b * num_tokens_ + n]; }
  int64_t next(int64_t b, int64_t entry) const { return next_[b * entries_ + entry]; }

 private:
  int64_t num_tokens_, entries_;
  std::vector<int64_t> head_, next_;
};

template <typename S>
void gather(const Tensor& tokens, const Index& index, const Tensor* pos, const bool* keep_pos,
            const Tensor& out) {
  if (out.numel() == 0) return;  // rows without channels may be any number
  const int64_t count = out.size(1), width = out.size(2);
  const Rows<S> in = view<S>(tokens), to = view<S>(out);
  const S* table = pos ? data<const S>(*pos) : nullptr;
  parallel(out.size(0) * count, width, [&](int64_t task) {
    const int64_t b = task / count, j = task % count, n = index(b, j);
    if (table && (!keep_pos || keep_pos[b])) {
      CFMVIT_ROWS(add<S>)(to.at(b, j), in.at(b, n), table + n * width, width);
    } else {
      std::memcpy(to.at(b, j), in.at(b, n), width * sizeof(S));
    }
  });
}

// One row = sum of the gradient rows whose entries name token n, in their order.
template <typename S>
void scatter_row(S* out, const Inverse& inverse, const std::vector<Rows<S>>& grads,
                 const std::vector<int64_t>& starts, int64_t b, int64_t n, int64_t width) {
  const auto row = [&](int64_t entry) {
    size_t source = starts.size() - 1;
    while (entry < starts[source]) --source;
    return grads[source].at(b, entry - starts[source]);
  };
  const int64_t first = inverse.first(b, n);
  if (first < 0) {
    std::memset(out, 0, width * sizeof(S));
  } else if (inverse.next(b, first) < 0) {
    std::memcpy(out, row(first), width * sizeof(S));
  } else {
    std::vector<acc_t<S>> sum(width, 0);
    for (int64_t entry = first; entry >= 0; entry = inverse.next(b, entry)) {
      CFMVIT_ROWS(accumulate<S>)(sum.data(), row(entry), width);
    }
    CFMVIT_ROWS(store<S>)(out, sum.data(), width);
  }
}

Tensor gather_named(const char* op, const char* name, Tensor tokens, const Tensor& index,
                    const std::optional<Tensor>& pos_embed, const std::optional<Tensor>& keep_pos) {
  check_tokens(op, "tokens", tokens);
  const Index at = checked_index(op, name, index, tokens.size(0), tokens.size(1));
  const Positions positions = checked_positions(op, tokens, pos_embed, keep_pos, tokens.size(1));
  tokens = rows_of(tokens);
  const Tensor out = like(tokens, {tokens.size(0), index.size(1), tokens.size(2)});
  dispatch_floating(op, tokens.scalar_type(), [&](auto zero) {
    gather<decltype(zero)>(tokens, at, positions.table(), positions.keep(), out);
  });
  return out;
}

// Gradients of tokens and positions from those of gathered rows.
std::tuple<Tensor, Tensor> gather_backward(const char* op, const std::vector<GatheredGradient>& sources,
                                           const std::optional<Tensor>& keep_pos, int64_t num_tokens,
                                           bool needs_tokens, bool needs_pos) {
  const std::vector<Index> indices = checked_gradients(op, sources, num_tokens);
  const Tensor& first = sources[0].grad;
  const int64_t batch = first.size(0), width = first.size(2);
  std::vector<Tensor> grads;
  std::vector<int64_t> starts;
  int64_t entries = 0;
  for (const GatheredGradient& source : sources) {
    grads.push_back(rows_of(source.grad));
    starts.push_back(entries);
    entries += source.index.size(1);
  }
  Inverse inverse(batch, num_tokens, entries);
  for (size_t s = sources.size(); s-- > 0;)
    inverse.add(indices[s], starts[s], sources[s].index.size(1), batch);
  const Positions positions = checked_positions(op, first, std::nullopt, keep_pos, num_tokens);
  const Tensor grad_tokens =
      like(first, needs_tokens ? std::vector<int64_t>{batch, num_tokens, width} : std::vector<int64_t>{0});
  const Tensor grad_pos =
      like(first, needs_pos ? std::vector<int64_t>{num_tokens, width} : std::vector<int64_t>{0});
  dispatch_floating(op, first.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    std::vector<Rows<S>> from;
    for (const Tensor& grad : grads) from.push_back(view<S>(grad));
    if (needs_tokens) {
      S* to = data<S>(grad_tokens);
      parallel(batch * num_tokens, width, [&](int64_t task) {
        scatter_row<S>(to + task * width, inverse, from, starts, task / num_tokens, task % num_tokens, width);
      });
    }
    if (!needs_pos) return;
    const bool* keep = positions.keep();
    S* to = data<S>(grad_pos);
    parallel(num_tokens, batch * width, [&](int64_t n) {
      std::vector<acc_t<S>> sum(width, 0);
      for (int64_t b = 0; b < batch; ++b) {
        if (keep && !keep[b]) continue;
        for (int64_t entry = inverse.first(b, n); entry >= 0; entry = inverse.next(b, entry)) {
          size_t s = starts.size() - 1;
          while (entry < starts[s]) --s;
          CFMVIT_ROWS(accumulate<S>)(sum.data(), from[s].at(b, entry - starts[s]), width);
        }
      }
      CFMVIT_ROWS(store<S>)(to + n * width, sum.data(), width);
    });
  });
  return {grad_tokens, grad_pos};
}

}  // namespace

Tensor gather_tokens_cpu(Tensor tokens, Tensor index, std::optional<Tensor> pos_embed,
                         std::optional<Tensor> keep_pos) {
  return gather_named("gather_tokens", "index", tokens, index, pos_embed, keep_pos);
}

std::tuple<Tensor, Tensor> gather_tokens_backward_cpu(Tensor grad, Tensor index,
                                                      std::optional<Tensor> keep_pos, int64_t num_tokens,
                                                      bool needs_tokens, bool needs_pos) {
  return gather_backward("gather_tokens_backward", {{"grad", "index", grad, index}}, keep_pos, num_tokens,
                         needs_tokens, needs_pos);
}

std::tuple<Tensor, Tensor> split_tokens_cpu(Tensor tokens, Tensor keep, Tensor masked,
                                            std::optional<Tensor> pos_embed, std::optional<Tensor> keep_pos) {
  constexpr const char* op = "split_tokens";
  check_split(op, tokens, keep, masked);
  return {gather_named(op, "masking.keep", tokens, keep, pos_embed, keep_pos),
          gather_named(op, "masking.masked", tokens, masked, pos_embed, keep_pos)};
}

std::tuple<Tensor, Tensor> split_tokens_backward_cpu(Tensor grad_visible, Tensor grad_masked, Tensor keep,
                                                     Tensor masked, std::optional<Tensor> keep_pos,
                                                     bool needs_tokens, bool needs_pos) {
  constexpr const char* op = "split_tokens_backward";
  const int64_t num_tokens = split_tokens_count(op, keep, masked);
  return gather_backward(
      op, {{"grad_visible", "keep", grad_visible, keep}, {"grad_masked", "masked", grad_masked, masked}},
      keep_pos, num_tokens, needs_tokens, needs_pos);
}

Tensor restore_tokens_cpu(Tensor visible, Tensor mask_token, Tensor restore,
                          std::optional<Tensor> pos_embed) {
  constexpr const char* op = "restore_tokens";
  const Restored shape = check_restore(op, visible, mask_token, restore);
  const int64_t batch = shape.batch, kept = shape.kept, count = shape.count, width = shape.width;
  const Index& from = shape.from;
  const Positions positions = checked_positions(op, visible, pos_embed, std::nullopt, count);
  visible = rows_of(visible);
  mask_token = dense(mask_token);
  const Tensor out = like(visible, {batch, count, width});
  if (out.numel() == 0) return out;
  dispatch_floating(op, visible.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const Rows<S> in = view<S>(visible), to = view<S>(out);
    const S* mask = data<const S>(mask_token);
    const S* table = positions.embed ? data<const S>(*positions.embed) : nullptr;
    parallel(batch * count, width, [&](int64_t task) {
      const int64_t b = task / count, n = task % count, k = from(b, n);
      const S* row = k < kept ? in.at(b, k) : mask;
      if (table) {
        CFMVIT_ROWS(add<S>)(to.at(b, n), row, table + n * width, width);
      } else {
        std::memcpy(to.at(b, n), row, width * sizeof(S));
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> restore_tokens_backward_cpu(Tensor grad, Tensor restore, int64_t kept,
                                                               bool needs_pos) {
  constexpr const char* op = "restore_tokens_backward";
  check_tokens(op, "grad", grad);
  const int64_t batch = grad.size(0), count = grad.size(1), width = grad.size(2);
  const Index from = checked_restore(op, restore, batch, kept, count);
  grad = rows_of(grad);
  const Tensor grad_visible = like(grad, {batch, kept, width}), grad_mask = like(grad, {width});
  const Tensor grad_pos =
      like(grad, needs_pos ? std::vector<int64_t>{count, width} : std::vector<int64_t>{0});
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const Rows<S> in = view<S>(grad), out = view<S>(grad_visible);
    auto partial = filled<acc_t<S>>({batch, width}, 0);
    parallel(batch, count * width, [&](int64_t b) {
      for (int64_t n = 0; n < count; ++n) {
        const int64_t k = from(b, n);
        if (k < kept) {
          std::memcpy(out.at(b, k), in.at(b, n), width * sizeof(S));
        } else {
          CFMVIT_ROWS(accumulate<S>)(partial.data() + b * width, in.at(b, n), width);
        }
      }
    });
    std::vector<acc_t<S>> total(width, 0);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t c = 0; c < width; ++c) total[c] += partial[b * width + c];
    }
    CFMVIT_ROWS(store<S>)(data<S>(grad_mask), total.data(), width);
    if (!needs_pos) return;
    S* to = data<S>(grad_pos);
    parallel(count, batch * width, [&](int64_t n) {
      std::vector<acc_t<S>> sum(width, 0);
      for (int64_t b = 0; b < batch; ++b) CFMVIT_ROWS(accumulate<S>)(sum.data(), in.at(b, n), width);
      CFMVIT_ROWS(store<S>)(to + n * width, sum.data(), width);
    });
  });
  return {grad_visible, grad_mask, grad_pos};
}

}  // namespace cfmvit

STABLE_TORCH_LIBRARY_IMPL(cfmvit, CPU, m) {
  CFMVIT_IMPL(m, gather_tokens, &cfmvit::gather_tokens_cpu);
  CFMVIT_IMPL(m, gather_tokens_backward, &cfmvit::gather_tokens_backward_cpu);
  CFMVIT_IMPL(m, split_tokens, &cfmvit::split_tokens_cpu);
  CFMVIT_IMPL(m, split_tokens_backward, &cfmvit::split_tokens_backward_cpu);
  CFMVIT_IMPL(m, restore_tokens, &cfmvit::restore_tokens_cpu);
  CFMVIT_IMPL(m, restore_tokens_backward, &cfmvit::restore_tokens_backward_cpu);
}
