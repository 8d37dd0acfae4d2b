// kernels.h - the CUDA kernels of the recurrence over a sequence: the operands of one launch, the entry points, and the table
// that says which kernel serves which case.
#pragma once
#include "common/element_type.h"
#include "slstm/params.h"

namespace xlstm::slstm {

// resident: one block holds R of one head; cluster: the blocks of a cluster do, and exchange h through distributed shared
// memory; grid: cooperating blocks do, and exchange h through L2; step: S = 1 in a decoding loop, forward only.
enum class KernelKind { Resident, Cluster, Grid, Step };

constexpr int kTileRows = 8;  // rows of a block of a resident kernel: the n of an mma

// "Element" is float32, bfloat16 or float16; "tails" are float16 where Element has 16 bits, else float32. DH is a multiple of 8
// (the caller pads, with zeros); P = DH. All strides in elements; x and dh have unit last stride and every row begins at a
// multiple of 16 bytes. Any kind's backward reads what any kind's forward saved. The sign of a saved sf (sf >= 0) marks a
// reset.
struct KernelForward {
  KernelKind kernel;
  int processors;  // the grid kernel counts on no more of them; 0: all of the device's
  Shape shape;
  ElementType element;
  View<> x;                                  // (B, S, NH, DH) of Element, of the first gate
  int64_t x_gate_stride;                     // from gate to gate
  const void* R;                             // (4, NH, DH, DH) [gate, head, out, in] of Element
  const float* b;                            // (4, NH, DH) or null
  const float *h0, *c0, *n0, *m0;            // (B, NH, DH), all null for a fresh start
  void* h;                                   // (B, S, NH, DH) of Element
  float *h_last, *c_last, *n_last, *m_last;  // (B, NH, DH)
  void* saved_tails;                         // (B, S, NH, DH, 4): d, sf, u, w of cell.cuh; null when nothing is saved
  float* saved_cells;                        // (B, S, NH, DH, 2): c, n after the step; null when nothing is saved
  void* workspace;                           // grid kernel: grid_workspace_bytes, of any content; else null
};
template <class R>
void read(R& r, KernelForward& p) {
  r("kernel", p.kernel)("processors", p.processors)("shape", p.shape)("dtype", p.element);
  r("x", p.x)("x_gate_stride", p.x_gate_stride)("R", p.R)("b", p.b);
  r("h0", p.h0)("c0", p.c0)("n0", p.n0)("m0", p.m0)("h", p.h);
  r("h_last", p.h_last)("c_last", p.c_last)("n_last", p.n_last)("m_last", p.m_last);
  r("saved_tails", p.saved_tails)("saved_cells", p.saved_cells)("workspace", p.workspace);
}

struct KernelBackward {
  KernelKind kernel;
  int processors;
  Shape shape;
  ElementType element;
  const void* R;                             // (4, NH, DH, DH) of Element
  const float *h0, *c0, *n0;                 // (B, NH, DH), all null for a fresh start
  const void* saved_tails;                   // (B, S, NH, DH, 4)
  const float* saved_cells;                  // (B, S, NH, DH, 2)
  View<> dh;                                 // (B, S, NH, DH) of Element, or null for zero
  const float *dh_last, *dc_last, *dn_last;  // (B, NH, DH), each null for zero
  void* dx;                                  // (B, S, 4, NH, DH) of Element
  float* db_parts;               // (parts, 4, NH, DH): dx summed over steps, of a row (cluster, grid) or of a tile of rows
  float *dh0, *dc0, *dn0, *dm0;  // (B, NH, DH)
  void* workspace;               // grid kernel: grid_workspace_bytes, of any content; else null
};
template <class R>
void read(R& r, KernelBackward& p) {
  r("kernel", p.kernel)("processors", p.processors)("shape", p.shape)("dtype", p.element);
  r("R", p.R)("h0", p.h0)("c0", p.c0)("n0", p.n0);
  r("saved_tails", p.saved_tails)("saved_cells", p.saved_cells);
  r("dh", p.dh)("dh_last", p.dh_last)("dc_last", p.dc_last)("dn_last", p.dn_last);
  r("dx", p.dx)("db_parts", p.db_parts);
  r("dh0", p.dh0)("dc0", p.dc0)("dn0", p.dn0)("dm0", p.dm0)("workspace", p.workspace);
}

// What a kernel may use: a device's limits, asked from CUDA, or those of a card the executor plays.
struct DeviceLimits {
  int architecture;      // 80, 86, 89, 90, 100, 120
  int processors;        // SMs
  int shared_per_block;  // bytes, with opt-in
};

// Each enqueues one pass on the stream (the grid kernel: as many launches as its heads need). std::invalid_argument for a shape
// that the kernel does not hold, std::runtime_error for CUDA errors and for blocks that cannot all be resident.
// step: S = 1 in a decoding loop, without resets, cu_seqlens and saved tensors, R read from memory once; DH up to 1024.
void step(const KernelForward&, Stream stream);
void resident_pass(const KernelForward&, Stream stream);
void resident_pass(const KernelBackward&, Stream stream);
void cluster_pass(const KernelForward&, const DeviceLimits&, Stream stream);
void cluster_pass(const KernelBackward&, const DeviceLimits&, Stream stream);
void grid_pass(const KernelForward&, const DeviceLimits&, Stream stream);
void grid_pass(const KernelBackward&, const DeviceLimits&, Stream stream);
bool cluster_fits(const KernelForward&, const DeviceLimits&);  // asks the current device; looks at shape.DH and element only
bool cluster_fits(const KernelBackward&, const DeviceLimits&);
int64_t grid_workspace_bytes(const KernelForward&, const DeviceLimits&);
int64_t grid_workspace_bytes(const KernelBackward&, const DeviceLimits&);

// The pass by the kernel that the operands name. Without rows there is nothing to do.
void forward(const KernelForward&, Stream);
void backward(const KernelBackward&, Stream);

}  // namespace xlstm::slstm
