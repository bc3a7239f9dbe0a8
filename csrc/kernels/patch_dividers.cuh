// Where a run of V neighbouring pixels lies, for dividing positions inside a patch and inside an image.
#pragma once

#include "kernels/fast_division.cuh"
#include "plain/patch_grid.h"

namespace cfmvit::kernels {

struct PatchDividers {
  Divider runs_a_line, lines, columns;  // of a patch: P / V and P; patches in a row of the image

  PatchDividers(const PatchGrid& grid, int v)
      : runs_a_line(grid.patch / v), lines(grid.patch), columns(grid.columns) {}
};

}  // namespace cfmvit::kernels
