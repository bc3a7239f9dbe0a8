// What rounding to bfloat16 takes from gradients by similarities. Factors in bfloat16 are multiplied at twice
// the rate of float32, and two things must not be lost in that:
// - In a trained model a pair and its hard negatives carry most of a row, so that their rounding errors do
// not
//   average out: such entries get their residuals back. On pairs of cosine 0.2 to 0.5 at scales of 14 to 100
//   the products then lose 0.3e-3 at most (without: 3.2e-3), where rounding the gradient itself to bfloat16
//   costs 1.7e-3.
// - Where features are alike, a row's many small entries cancel against its pair: the residuals of a row and
// of
//   a column are summed and go to the pair, so that rounding leaves their sums as they were.
#pragma once

#include <cstdint>
#include <vector>

namespace cfmvit::contrastive {

struct Residual {
  int64_t row, col;
  float value;
};

struct Residuals {                // of a tile
  std::vector<Residual> large;    // by rows
  std::vector<float> rows, cols;  // sums of the others
};

}  // namespace cfmvit::contrastive
