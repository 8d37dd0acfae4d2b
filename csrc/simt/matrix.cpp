// matrix.cpp - ldmatrix, stmatrix and mma.sync, with the fragment tables of the PTX ISA written as the manual writes them:
// 9.7.14.5.7 (m16n8k8 .tf32), 9.7.14.5.8 (m16n8k16 .f16 and .bf16), 9.7.14.5.15 (ldmatrix).
#include <cuda_fp16.h>

#include "simt/race_detector.h"
#include "simt/state.h"
#include "simt/trace.h"

namespace xlstm::simt {
namespace {

struct Coordinate {
  int row, column;
};
// i: index of the element in the thread's fragment, low half of a register first
Coordinate a_16x16(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {(i < 2 || (i >= 4 && i < 6)) ? group : group + 8, in_group * 2 + (i & 1) + (i < 4 ? 0 : 8)};
}
Coordinate b_16x8(int lane, int i) { return {lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8), lane >> 2}; }
Coordinate c_16x8(int lane, int i) { return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)}; }
Coordinate a_16x8_tf32(int lane, int i) {
  return {(i == 0 || i == 2) ? lane >> 2 : (lane >> 2) + 8, i < 2 ? lane % 4 : lane % 4 + 4};
}
Coordinate b_8x8_tf32(int lane, int i) { return {i == 0 ? lane % 4 : lane % 4 + 4, lane >> 2}; }

template <int N>
struct Offsets {  // element offsets of a fragment in a row-major matrix
  uint8_t at[32][N];
  Offsets(Coordinate (*where)(int, int), int columns) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < N; ++i) at[lane][i] = uint8_t(where(lane, i).row * columns + where(lane, i).column);
  }
};
const Offsets<8> kA16(a_16x16, 16);
const Offsets<4> kB16(b_16x8, 8), kC(c_16x8, 8), kA8(a_16x8_tf32, 8);
const Offsets<2> kB8(b_8x8_tf32, 8);

float from_bfloat16(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
float from_float16(uint16_t bits) {
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}
float from_tf32(uint32_t word) {  // the low 13 bits are ignored
  word &= 0xffffe000u;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

struct MmaCall {
  float* d;
  const uint32_t *a, *b;
};
template <float (*Convert)(uint16_t)>
void run_m16n8k16(void* const* lanes, unsigned, const Collective&, Warp*) {
  float a[16 * 16], b[16 * 8], d[16 * 8];
  ++machine.counters.mma;
  for (int lane = 0; lane < 32; ++lane) {
    const auto* call = static_cast<MmaCall*>(lanes[lane]);
    for (int i = 0; i < 8; ++i) a[kA16.at[lane][i]] = Convert(uint16_t(call->a[i >> 1] >> (i & 1) * 16));
    for (int i = 0; i < 4; ++i) b[kB16.at[lane][i]] = Convert(uint16_t(call->b[i >> 1] >> (i & 1) * 16));
    for (int i = 0; i < 4; ++i) d[kC.at[lane][i]] = call->d[i];
  }
  multiply_accumulate(a, b, d, 16, 8, 16);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) static_cast<MmaCall*>(lanes[lane])->d[i] = d[kC.at[lane][i]];
}
void run_m16n8k8_tf32(void* const* lanes, unsigned, const Collective&, Warp*) {
  float a[16 * 8], b[8 * 8], d[16 * 8];
  ++machine.counters.mma;
  for (int lane = 0; lane < 32; ++lane) {
    const auto* call = static_cast<MmaCall*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) a[kA8.at[lane][i]] = from_tf32(call->a[i]);
    for (int i = 0; i < 2; ++i) b[kB8.at[lane][i]] = from_tf32(call->b[i]);
    for (int i = 0; i < 4; ++i) d[kC.at[lane][i]] = call->d[i];
  }
  multiply_accumulate(a, b, d, 16, 8, 8);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) static_cast<MmaCall*>(lanes[lane])->d[i] = d[kC.at[lane][i]];
}

// Lanes 8m..8m+7 give the row addresses of matrix m. Lane l holds, of each matrix, row l/4, columns 2(l%4) and 2(l%4)+1; with
// .trans of the transposed matrix.
struct MatrixCall {
  uint32_t* registers;
  const char* row;
};
template <int Matrices, bool Transposed, bool Store>
void move_matrices(void* const* lanes, unsigned, const Collective& c, Warp* warp) {
  ++(Store ? machine.counters.stmatrix : machine.counters.ldmatrix);
  const void* rows[32];
  Fiber* const caller = self;
  for (int lane = 0; lane < 8 * Matrices; ++lane) {
    const char* row = static_cast<MatrixCall*>(lanes[lane])->row;
    rows[lane] = row;
    const auto refuse = [&](const char* why) {
      fail(std::string(c.name) + " at " + to_string(c.site) + ": the row address of lane " + std::to_string(lane) + why);
    };
    if (reinterpret_cast<uintptr_t>(row) & 15) refuse(" is not 16-byte aligned");
    if (!in_shared(warp->block, row, 16)) refuse(" is not in this block's shared memory");
    self = warp->lanes[lane];
    touch(row, 16, (Store ? kWrite : kRead) | kSilent, c.site);
    self = caller;
  }
  profile_matrix_rows(rows, 8 * Matrices, Store, c.site);
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < Matrices; ++m)
      for (int half = 0; half < 2; ++half) {
        int row = lane / 4, column = 2 * (lane % 4) + half;
        if (Transposed) std::swap(row, column);
        char* element = const_cast<char*>(static_cast<const char*>(rows[8 * m + row])) + 2 * column;
        uint32_t& reg = static_cast<MatrixCall*>(lanes[lane])->registers[m];
        uint16_t value;
        if (Store) {
          value = uint16_t(reg >> 16 * half);
          std::memcpy(element, &value, 2);
        } else {
          std::memcpy(&value, element, 2);
          reg = half ? (reg & 0xffffu) | uint32_t(value) << 16 : (reg & 0xffff0000u) | value;
        }
      }
}
template <bool Store>
CollectiveBody matrix_body(int matrices, bool transposed) {
  switch (matrices) {
    case 1:
      return transposed ? move_matrices<1, true, Store> : move_matrices<1, false, Store>;
    case 2:
      return transposed ? move_matrices<2, true, Store> : move_matrices<2, false, Store>;
    default:
      return transposed ? move_matrices<4, true, Store> : move_matrices<4, false, Store>;
  }
}
constexpr unsigned kAllLanes = 0xffffffffu;

}  // namespace

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, MmaType type, const Site& site) {
  MmaCall call{d, a, b};
  warp_collective(kMma + int(type), "mma.m16n8k16", kAllLanes, &call,
                  type == MmaType::BFloat16 ? run_m16n8k16<from_bfloat16> : run_m16n8k16<from_float16>, site);
}
void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const Site& site) {
  MmaCall call{d, a, b};
  warp_collective(kMma + int(MmaType::Tf32), "mma.m16n8k8.tf32", kAllLanes, &call, run_m16n8k8_tf32, site);
}
void ldmatrix(uint32_t* r, const void* row, int matrices, bool transposed, const Site& site) {
  MatrixCall call{r, static_cast<const char*>(row)};
  warp_collective(kLdmatrix + 2 * matrices + transposed, "ldmatrix", kAllLanes, &call, matrix_body<false>(matrices, transposed),
                  site);
}
void stmatrix(const uint32_t* r, void* row, int matrices, bool transposed, const Site& site) {
  require_architecture(90, "stmatrix", site);
  MatrixCall call{const_cast<uint32_t*>(r), static_cast<const char*>(row)};
  warp_collective(kStmatrix + 2 * matrices + transposed, "stmatrix", kAllLanes, &call, matrix_body<true>(matrices, transposed),
                  site);
}

}  // namespace xlstm::simt
