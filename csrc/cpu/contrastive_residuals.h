// What rounding to bfloat16 takes from gradients by similarities. Factors in bfloat16 are multiplied at twice
// the rate of float32, and two things must not be lost in that:
// - In a trained model a pair and its hard negatives carry most of a row, so that their rounding errors do
// not
//   average out: such entries get their residuals back. On pairs of cosine 0.2 to 0.5 at scales of 14 to 100
//   the products then lose 0.3e-3 at most (without: 3.2e-3), where rounding the gradient itself to bfloat16
//   costs 1.7e-3.
// - Where features are alike, a row's many small entries cancel against its pair: the residuals of a row and
//   of a column are summed and go to the pair, so that rounding leaves their sums as they were.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/matrix_view.h"
#include "plain/half.h"

namespace cfmvit::contrastive {

struct Residual {
  int64_t row, col;
  float value;
};

struct Residuals {              // of a tile
  std::vector<Residual> large;  // by rows
  std::vector<float> rows;      // sums of the others
  std::vector<float> cols;      // likewise, over all tiles so far
};

// Where kHasAvx512BFloat16: rounds a tile and finds what that takes. Large entries have a sixteenth or more
// of the mean squared norm of a row: 16 a row at most.
void round_tile(Matrix<const float> tile, Matrix<BFloat16> rounded, Residuals& found);

// out += factor x, where kHasAvx512BFloat16.
void add_scaled(float* out, float factor, const BFloat16* x, int64_t n);

}  // namespace cfmvit::contrastive
