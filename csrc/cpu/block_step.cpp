// block_step.cpp - the parts of a block's step one after the other; those that read many weights on threads.
#include "cpu/block_step.h"

#include <vector>

#include "cpu/isa.h"
#include "cpu/mlstm_step.h"
#include "cpu/threads.h"

namespace xlstm::cpu {
namespace {

constexpr int64_t kWorthThreads = 500'000;  // multiply-adds; fewer are done before another thread has woken up
constexpr int64_t kOutputs = 64;            // of a task

template <typename Real>
void run(const Linear<Real>& p, int threads) {
  auto* const part = XLSTM_OF_ISA(linear<Real>);
  const int64_t tasks = (p.outputs + kOutputs - 1) / kOutputs;
  if (p.rows * p.K * p.outputs < kWorthThreads) return part(p, 0, p.outputs);
  parallel_for(tasks, threads, [&](int64_t index) { part(p, index * kOutputs, std::min((index + 1) * kOutputs, p.outputs)); });
}

template <typename Real>
void norm_rows(int64_t rows, const Real* x, const Real* weight, Real eps, int64_t D, Real* y) {
  auto* const norm = XLSTM_OF_ISA(norm_row<Real>);
  for (int64_t row = 0; row < rows; ++row) norm(x + row * D, weight, eps, D, y + row * D);
}

// Pieces of one allocation.
template <typename Real>
class Memory {
 public:
  explicit Memory(int64_t count) : numbers_(count), next_(numbers_.data()) {}
  Real* take(int64_t count) {
    Real* const taken = next_;
    next_ += count;
    return taken;
  }

 private:
  std::vector<Real> numbers_;
  Real* next_;
};

}  // namespace

template <typename Real>
void mlstm_block_step(const MlstmBlockStep<Real>& p, int threads) {
  const int64_t B = p.B, D = p.D, I = p.I, NH = p.NH, DH = p.DH();
  Memory<Real> numbers(B * (D + 11 * I + 2 * NH));
  MlstmBlockMemory<Real> memory{};
  memory.normed = numbers.take(B * D);
  memory.up = numbers.take(B * 2 * I);
  memory.qkv = numbers.take(B * 3 * I);
  for (Real** array : {&memory.c, &memory.q, &memory.k, &memory.v, &memory.h, &memory.inner}) *array = numbers.take(B * I);
  memory.i = numbers.take(B * NH);
  memory.f = numbers.take(B * NH);

  norm_rows(B, p.x, p.block_norm, p.block_eps, D, memory.normed);
  run(Linear<Real>{B, D, 2 * I, p.up_weight, p.up_bias, memory.normed, nullptr, memory.up}, threads);
  auto* const inputs = XLSTM_OF_ISA(mlstm_block_inputs<Real>);
  for (int64_t b = 0; b < B; ++b) inputs(p, memory, b);
  MlstmStep<Real> cell;
  cell.eps = Real(1e-6);
  cell.rows = B * NH, cell.DHQK = DH, cell.DHHV = DH;
  cell.q = memory.q, cell.k = memory.k, cell.v = memory.v, cell.i = memory.i, cell.f = memory.f;
  cell.C = p.C, cell.n = p.n, cell.m = p.m;
  cell.h = memory.h, cell.C_last = p.C_last, cell.n_last = p.n_last, cell.m_last = p.m_last;
  mlstm_step(cell, threads);
  auto* const output = XLSTM_OF_ISA(mlstm_block_output<Real>);
  for (int64_t b = 0; b < B; ++b) output(p, memory, b);
  run(Linear<Real>{B, I, D, p.down_weight, p.down_bias, memory.inner, p.x, p.y}, threads);
}

template <typename Real>
void slstm_block_step(const SlstmBlockStep<Real>& p, int threads) {
  const int64_t B = p.B, D = p.D, F = p.F;
  Memory<Real> numbers(B * (11 * D + 3 * F));
  SlstmBlockMemory<Real> memory{};
  for (Real** array : {&memory.normed, &memory.c, &memory.mixed}) *array = numbers.take(B * D);
  for (Real** array : {&memory.raw, &memory.recurrent}) *array = numbers.take(B * 4 * D);
  memory.up = numbers.take(B * 2 * F);
  memory.inner = numbers.take(B * F);

  norm_rows(B, p.x, p.block_norm, p.block_eps, D, memory.normed);
  if (!F) memory.mixed = p.y;
  auto* const cell = XLSTM_OF_ISA(slstm_block_cell<Real>);
  const bool many = B * p.NH * 8 * p.DH() * p.DH() >= kWorthThreads;
  parallel_for(B, many ? threads : 1, [&](int64_t b) { cell(p, memory, b); });
  if (!F) return;
  norm_rows(B, memory.mixed, p.ffn_norm, p.ffn_eps, D, memory.normed);
  run(Linear<Real>{B, D, 2 * F, p.up_weight, p.up_bias, memory.normed, nullptr, memory.up}, threads);
  auto* const gate = XLSTM_OF_ISA(gated<Real>);
  for (int64_t b = 0; b < B; ++b) gate(memory.up + b * 2 * F, F, memory.inner + b * F);
  run(Linear<Real>{B, F, D, p.down_weight, p.down_bias, memory.inner, memory.mixed, p.y}, threads);
}

template void mlstm_block_step(const MlstmBlockStep<float>&, int);
template void mlstm_block_step(const MlstmBlockStep<double>&, int);
template void slstm_block_step(const SlstmBlockStep<float>&, int);
template void slstm_block_step(const SlstmBlockStep<double>&, int);

}  // namespace xlstm::cpu
