// projection.h - matrix products over the tokens of a layer, which projection.cpp compiles once per instruction set. Every sum
// runs over its tokens or features in order, whatever the tile that it is in.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace xlstm::cpu {

// out (rows, N) of A and B (K, N). B is packed in panels of columns, which a product reads front to back; N is a multiple of 16.
// Rows of out and of A, and columns of A where it is read transposed, lie a step apart.
template <typename Real>
struct Product {
  const Real* a;
  int64_t a_step, rows, K;
  const Real* packed;  // K N numbers
  int64_t N;
  Real* out;
  int64_t out_step;
};

template <typename Real>
struct Products {
  // packed = B, where B[k][n] = from[k * step + n], or, transposed, from[n * step + k].
  void (*pack)(const Real* from, int64_t step, int64_t K, int64_t N, Real* packed);
  void (*pack_transposed)(const Real* from, int64_t step, int64_t K, int64_t N, Real* packed);
  void (*product)(const Product<Real>& p);    // out = A B, A[row][k] = a[row * a_step + k]
  void (*add_outer)(const Product<Real>& p);  // out += A^T B, A[k][row] = a[k * a_step + row]: k counts tokens
};

XLSTM_IN_EVERY_ISA(template <typename Real> Products<Real> products();)

}  // namespace xlstm::cpu
