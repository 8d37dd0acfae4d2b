// kernels.h - the CUDA kernels of the recurrence over a sequence: the operands of one launch, the entry points, and the table
// that says which kernel serves which case.
#pragma once
#include "element_type.h"
#include "slstm/params.h"

namespace xlstm::slstm {

// resident: one block holds R of one head; cluster: the blocks of a cluster do, and exchange h through distributed shared
// memory; grid: cooperating blocks do, and exchange h through L2.
enum class KernelKind { Resident, Cluster, Grid };

constexpr int kTileRows = 8;  // rows of a block of a resident kernel: the n of an mma

// "Element" is float32, bfloat16 or float16; "tails" are float16 where Element has 16 bits, else float32. DH is a multiple of 8
// (the caller pads, with zeros); P = DH. All strides in elements; x and dh have unit last stride and every row begins at a
// multiple of 16 bytes. Any kind's backward reads what any kind's forward saved. The sign of a saved sf (sf >= 0) marks a
// reset.
struct KernelForward {
  Shape shape;
  ElementType element;
  const void* x;  // (B, S, 4, NH, DH) of Element
  int64_t x_stride_b, x_stride_s, x_stride_g, x_stride_n;
  const void* R;                             // (4, NH, DH, DH) [gate, head, out, in] of Element
  const float* b;                            // (4, NH, DH) or null
  const float *h0, *c0, *n0, *m0;            // (B, NH, DH), all null for a fresh start
  void* h;                                   // (B, S, NH, DH) of Element
  float *h_last, *c_last, *n_last, *m_last;  // (B, NH, DH)
  void* saved_tails;                         // (B, S, NH, DH, 4): d, sf, u, w of cell.cuh; null when nothing is saved
  float* saved_cells;                        // (B, S, NH, DH, 2): c, n after the step; null when nothing is saved
  void* workspace;                           // grid kernel: grid_workspace_bytes, of any content
};

struct KernelBackward {
  Shape shape;
  ElementType element;
  const void* R;              // (4, NH, DH, DH) of Element
  const float *h0, *c0, *n0;  // (B, NH, DH), all null for a fresh start
  const void* saved_tails;    // (B, S, NH, DH, 4)
  const float* saved_cells;   // (B, S, NH, DH, 2)
  const void* dh;             // (B, S, NH, DH) of Element, or null for zero
  int64_t dh_stride_b, dh_stride_s, dh_stride_n;
  const float *dh_last, *dc_last, *dn_last;  // (B, NH, DH), each null for zero
  void* dx;                                  // (B, S, 4, NH, DH) of Element
  float* db_parts;               // (parts, 4, NH, DH): dx summed over steps, of a row (cluster, grid) or of a tile of rows
  float *dh0, *dc0, *dn0, *dm0;  // (B, NH, DH)
  void* workspace;               // grid kernel: grid_workspace_bytes, of any content
};

// What a kernel may use: a device's limits, asked from CUDA, or those of a card the executor plays.
struct DeviceLimits {
  int architecture;      // 80, 86, 89, 90, 100, 120
  int processors;        // SMs
  int shared_per_block;  // bytes, with opt-in
};

// Each enqueues one pass on the stream (the grid kernel: as many launches as its heads need). std::invalid_argument for a shape
// that the kernel does not hold, std::runtime_error for CUDA errors and for blocks that cannot all be resident.
// step: S = 1 in a decoding loop, without resets, cu_seqlens and saved tensors, R read from memory once; DH up to 1024.
void step(const KernelForward&, void* stream);
void resident_forward(const KernelForward&, void* stream);
void resident_backward(const KernelBackward&, void* stream);
void cluster_forward(const KernelForward&, const DeviceLimits&, void* stream);
void cluster_backward(const KernelBackward&, const DeviceLimits&, void* stream);
void grid_forward(const KernelForward&, const DeviceLimits&, void* stream);
void grid_backward(const KernelBackward&, const DeviceLimits&, void* stream);
bool cluster_fits(const KernelForward&, const DeviceLimits&);  // asks the current device; looks at shape.DH and element only
bool cluster_fits(const KernelBackward&, const DeviceLimits&);
int64_t grid_workspace_bytes(const KernelForward&, const DeviceLimits&);
int64_t grid_workspace_bytes(const KernelBackward&, const DeviceLimits&);

}  // namespace xlstm::slstm
