// Matrix products of one thread with AVX-512. Operands are packed in panels, so that blocks of any shape are
// multiplied at about 95 % of the processor's rate (BLAS: 85 % in float32; in bfloat16 it rounds the result).
#pragma once

#include "cpu/matrix_view.h"
#include "plain/half.h"

namespace cfmvit::products {

// Where kHasAvx512: out = a b, or out += a b; rows of out, and rows or columns of a and b, are contiguous.
void multiply(Matrix<float> out, Matrix<const float> a, Matrix<const float> b, bool accumulate);

// The same where kHasAvx512BFloat16, with factors in bfloat16 and sums in float32.
void multiply(Matrix<float> out, Matrix<const BFloat16> a, Matrix<const BFloat16> b, bool accumulate);

}  // namespace cfmvit::products
