// matrix.cpp - ldmatrix, stmatrix, mma: which lane holds which element is written here as in the tables of the PTX ISA.
#include "ptx/decode.h"
#include "ptx/lanes.h"
#include "ptx/memory.h"
#include "ptx/number_formats.h"

namespace xlstm::ptx {
namespace {

uint8_t* matrix_row(Warp& w, const Instruction& i, const Operand& o, int lane, Access access) {
  const uint64_t at = address(w, o, lane);
  if (at % 16) fault(&w, &i, "lane " + std::to_string(lane) + ": row address is no multiple of 16");
  return shared_at(w, i, *w.block, at, 16, lane, access);
}

template <int N, bool Transposed>
void load_matrices(Warp& w, const Instruction& i) {
  uint32_t values[N][32], known[N];
  for (int m = 0; m < N; ++m) {
    uint16_t tile[8][8];
    bool row_known[8][8];
    known[m] = 0xffffffffu;
    for (int row = 0; row < 8; ++row) {
      const uint8_t* p = matrix_row(w, i, i.o[N], 8 * m + row, Access::Read);
      std::memcpy(tile[row], p, 16);
      if (settings.reads)
        for (int col = 0; col < 8; ++col) row_known[row][col] = defined(w, p + 2 * col, 2);
    }
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, col = l % 4 * 2;
      const int row0 = Transposed ? col : row, col0 = Transposed ? row : col;
      const int row1 = Transposed ? col + 1 : row, col1 = Transposed ? row : col + 1;
      values[m][l] = tile[row0][col0] | uint32_t(tile[row1][col1]) << 16;
      if (settings.reads && !(row_known[row0][col0] && row_known[row1][col1])) known[m] &= ~(1u << l);
    }
  }
  for (int m = 0; m < N; ++m) {
    std::memcpy(out<uint32_t>(w, i.o[m]), values[m], sizeof values[m]);
    if (settings.reads) w.defined[i.o[m].id] = known[m];
  }
}

template <int N, bool Transposed>
void store_matrices(Warp& w, const Instruction& i) {
  for (int m = 0; m < N; ++m) {
    uint16_t tile[8][8];
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, col = l % 4 * 2;
      const uint32_t v = in<uint32_t>(w, i.o[1 + m])[l];
      (Transposed ? tile[col][row] : tile[row][col]) = uint16_t(v);
      (Transposed ? tile[col + 1][row] : tile[row][col + 1]) = uint16_t(v >> 16);
    }
    for (int row = 0; row < 8; ++row) {
      uint8_t* p = matrix_row(w, i, i.o[0], 8 * m + row, Access::Write);
      std::memcpy(p, tile[row], 16);
      set_defined(w, p, 16, true);
    }
  }
}

// D = A B + C, 16 x K by K x 8. Operands: d 0-3, a 4-7, b 8-9, c 10-13.
struct Product {
  float A[16][16] = {}, B[16][8] = {}, C[16][8], D[16][8];

  void multiply(int K) {
    for (int r = 0; r < 16; ++r) {
      if (settings.float32_products) {
        for (int c = 0; c < 8; ++c) D[r][c] = C[r][c];
        for (int k = 0; k < K; ++k)
          for (int c = 0; c < 8; ++c) D[r][c] += A[r][k] * B[k][c];
      } else {
        double sum[8];
        for (int c = 0; c < 8; ++c) sum[c] = C[r][c];
        for (int k = 0; k < K; ++k)
          for (int c = 0; c < 8; ++c) sum[c] += double(A[r][k]) * double(B[k][c]);
        for (int c = 0; c < 8; ++c) D[r][c] = float(sum[c]);
      }
    }
  }
  void read_c(const Warp& w, const Instruction& i) {
    for (int l = 0; l < 32; ++l)
      for (int r = 0; r < 4; ++r) C[l / 4 + (r & 2 ? 8 : 0)][2 * (l % 4) + (r & 1)] = get<float>(in<float>(w, i.o[10 + r])[l]);
  }
  void write_d(Warp& w, const Instruction& i) const {
    for (int l = 0; l < 32; ++l)
      for (int r = 0; r < 4; ++r) out<float>(w, i.o[r])[l] = put<float>(D[l / 4 + (r & 2 ? 8 : 0)][2 * (l % 4) + (r & 1)]);
  }
};

template <float (*Decode)(uint16_t)>
void mma_m16n8k16(Warp& w, const Instruction& i) {
  Product p;
  for (int l = 0; l < 32; ++l) {
    const int group = l / 4, thread = l % 4;
    for (int r = 0; r < 4; ++r) {
      const uint32_t v = in<uint32_t>(w, i.o[4 + r])[l];
      const int row = group + (r & 1 ? 8 : 0), col = 2 * thread + (r & 2 ? 8 : 0);
      p.A[row][col] = Decode(uint16_t(v));
      p.A[row][col + 1] = Decode(uint16_t(v >> 16));
    }
    for (int r = 0; r < 2; ++r) {
      const uint32_t v = in<uint32_t>(w, i.o[8 + r])[l];
      const int row = 2 * thread + (r ? 8 : 0);
      p.B[row][group] = Decode(uint16_t(v));
      p.B[row + 1][group] = Decode(uint16_t(v >> 16));
    }
  }
  p.read_c(w, i);
  p.multiply(16);
  p.write_d(w, i);
}

void mma_m16n8k8_tf32(Warp& w, const Instruction& i) {
  Product p;
  for (int l = 0; l < 32; ++l) {
    const int group = l / 4, thread = l % 4;
    for (int r = 0; r < 4; ++r)
      p.A[group + (r & 1 ? 8 : 0)][thread + (r & 2 ? 4 : 0)] = from_tf32(in<uint32_t>(w, i.o[4 + r])[l]);
    for (int r = 0; r < 2; ++r) p.B[thread + (r ? 4 : 0)][group] = from_tf32(in<uint32_t>(w, i.o[8 + r])[l]);
  }
  p.read_c(w, i);
  p.multiply(8);
  p.write_d(w, i);
}

template <bool Transposed>
Handler load_of(int n) {
  return n == 4 ? load_matrices<4, Transposed> : n == 2 ? load_matrices<2, Transposed> : load_matrices<1, Transposed>;
}
template <bool Transposed>
Handler store_of(int n) {
  return n == 4 ? store_matrices<4, Transposed> : n == 2 ? store_matrices<2, Transposed> : store_matrices<1, Transposed>;
}

}  // namespace

Handler decode_matrix(Decoding& d) {
  Instruction& i = d.i;
  if (d.is({"ldmatrix", "stmatrix"})) {
    if (!d.has("m8n8") || d.parts.back() != "b16") d.unknown();
    i.aligned = true;
    const int n = d.has("x4") ? 4 : d.has("x2") ? 2 : 1;
    const bool transposed = d.has("trans"), loads = d.op() == "ldmatrix";
    if (i.o.size() != size_t(n) + 1) d.unknown();
    for (int m = 0; m < n; ++m) d.width(loads ? m : 1 + m, 32);
    i.results = loads ? uint8_t(n) : 0;
    if (loads) return transposed ? load_of<true>(n) : load_of<false>(n);
    return transposed ? store_of<true>(n) : store_of<false>(n);
  }
  if (d.op() != "mma" || i.o.size() != 14) return nullptr;
  i.aligned = true;
  i.results = 4;
  for (size_t n = 0; n < 14; ++n) d.width(n, 32);
  if (d.opcode == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") return mma_m16n8k16<from_bf16>;
  if (d.opcode == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") return mma_m16n8k16<from_f16>;
  if (d.opcode == "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") return mma_m16n8k8_tf32;
  return nullptr;
}

}  // namespace xlstm::ptx
