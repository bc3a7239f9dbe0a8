// The sizes of blocks that the contrastive losses go by on the CPU. They depend on the sizes of the problem
// alone, so that the bits do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/matrix_view.h"

namespace cfmvit::contrastive {

// Texts of a block, which also owns their gradient; 256 x 512 float32 stay in a core's L2.
constexpr int64_t kCols = 512;

// Block of a gradient by images, rows and columns.
constexpr int64_t kGradRows = 256, kGradCols = 128;

// Rows of one product of similarities: fewer in small batches, which have too few blocks for all threads.
inline int64_t product_rows(int64_t images) { return images >= 2048 ? 128 : 32; }

// Rows of a block of the forward: sums of columns exist once per row block, so that there are at most 64.
inline int64_t forward_rows(int64_t images) {
  const int64_t least = product_rows(images);
  return images > 64 * least ? ceil_div(images, 64 * 128) * 128 : least;
}

// Rows of a block of the backward: about 3 % of the logits, in bfloat16 twice as many at first, which take as
// much room, within a workspace of 64 MiB; a multiple of 32, and of product_rows unless the workspace ends
// before that.
inline int64_t backward_rows(int64_t images, int64_t texts, int64_t item_size) {
  constexpr int64_t kWorkspaceBytes = int64_t{1} << 26;
  const int64_t most = std::max<int64_t>(kWorkspaceBytes / (texts * item_size), 32);
  const int64_t least = item_size == 2 ? 256 : 128;
  const int64_t rows = std::min(std::clamp<int64_t>(images / 32, least, 1024), most);
  return rows >= 128 ? rows / 128 * 128 : rows / 32 * 32;
}

}  // namespace cfmvit::contrastive
