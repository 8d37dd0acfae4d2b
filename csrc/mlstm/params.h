// params.h - what the mLSTM launchers are given: pointers with their shapes, strides in elements, sizes and switches.
#pragma once
#include <cstdint>

namespace xlstm {

enum class ElementType { Float32, BFloat16, Float16 };
enum class InputGate { Exponential, Sigmoid };

}  // namespace xlstm

namespace xlstm::mlstm {

struct HeadStrides {  // of a (B, NH, ...) tensor whose last axis has unit stride
  int64_t batch, head;
};

struct StepParams {
  int64_t B, NH;
  int DHQK, DHHV;  // multiples of 8 up to 512
  ElementType element, gate_element;
  InputGate input_gate;
  bool normalize;
  float scale, eps;
  const void *q, *k;             // (B, NH, DHQK) of element
  const void* v;                 // (B, NH, DHHV) of element
  const void *i, *f;             // (B, NH) of gate_element
  const float *C, *n, *m;        // (B, NH, DHQK, DHHV), (B, NH, DHQK), (B, NH), contiguous
  void* h;                       // (B, NH, DHHV) of element, contiguous
  float *C_new, *n_new, *m_new;  // contiguous; C_new may be C, the others must not overlap their namesakes
  HeadStrides q_strides, k_strides, v_strides, i_strides, f_strides;
};

// Enqueues the step on the stream. Throws std::invalid_argument for a head dim that is not accepted, std::runtime_error from
// CUDA.
void step(const StepParams& params, void* stream);

}  // namespace xlstm::mlstm
