// tile_check.cpp - a program for python_tests/simt_mutants.py: runs mlstm_tile.cu once and compares with float64.
// Usage: tile_check ORDER SEED LANDING RACES, numbers as in Options. Exit: 0 right, 1 wrong values, 2 the executor raised.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>

#include <cuda_bf16.h>

#include "simt/executor.h"
#include "simt/selftest/mlstm_tile.h"

namespace {

constexpr int kHeads = 2, kSteps = 200, kDim = 64;

struct Tensors {  // each its own allocation of its exact size, so that address checks see a step past the end
  std::vector<__nv_bfloat16> q, k, v;
  std::vector<float> F, I, h, m;
};

Tensors make() {
  Tensors t;
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  for (auto* x : {&t.q, &t.k, &t.v}) {
    x->resize(size_t(kHeads) * kSteps * kDim);
    for (auto& e : *x) e = __float2bfloat16(normal(generator));
  }
  for (int head = 0; head < kHeads; ++head) {
    double sum = 0;
    for (int s = 0; s < kSteps; ++s) {
      sum -= std::log1p(std::exp(-(3.0 + normal(generator))));
      t.F.push_back(float(sum));
      t.I.push_back(normal(generator));
    }
  }
  t.h.assign(t.q.size(), std::numeric_limits<float>::quiet_NaN());
  t.m.assign(t.F.size(), std::numeric_limits<float>::quiet_NaN());
  return t;
}

bool right(const Tensors& t) {
  for (int head = 0; head < kHeads; ++head)
    for (int row = 0; row < kSteps; ++row) {
      const float *F = &t.F[size_t(head) * kSteps], *I = &t.I[size_t(head) * kSteps];
      const auto at = [&](const std::vector<__nv_bfloat16>& x, int s, int d) {
        return double(__bfloat162float(x[(size_t(head) * kSteps + s) * kDim + d]));
      };
      double m = -INFINITY, sum = 0, largest = 0, error = 0;
      for (int j = 0; j <= row; ++j) m = std::fmax(m, double(F[row]) - F[j] + I[j]);
      std::vector<double> h(kDim, 0.0);
      for (int j = 0; j <= row; ++j) {
        double p = 0;
        for (int d = 0; d < kDim; ++d) p += at(t.q, row, d) * at(t.k, j, d);
        p *= std::exp(double(F[row]) - F[j] + I[j] - m) / 8;
        sum += p;
        for (int d = 0; d < kDim; ++d) h[d] += p * at(t.v, j, d);
      }
      const double normaliser = std::fmax(std::fabs(sum), std::exp(-m));
      for (int d = 0; d < kDim; ++d) {
        const double got = t.h[(size_t(head) * kSteps + row) * kDim + d], expected = h[d] / normaliser;
        if (!(std::fabs(got) < 1e30)) return false;
        error = std::fmax(error, std::fabs(got - expected));
        largest = std::fmax(largest, std::fabs(expected));
      }
      if (!(error <= 2e-2 * (largest + 1e-3)) || !(std::fabs(t.m[size_t(head) * kSteps + row] - m) < 1e-3)) return false;
    }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 3;
  auto& options = xlstm::simt::options();
  options.order = xlstm::simt::Order(std::atoi(argv[1]));
  options.seed = std::strtoull(argv[2], nullptr, 10);
  options.landing = xlstm::simt::Landing(std::atoi(argv[3]));
  options.races = std::atoi(argv[4]) != 0;
  Tensors t = make();
  try {
    xlstm::selftest::mlstm_tile(t.q.data(), t.k.data(), t.v.data(), t.F.data(), t.I.data(), t.h.data(), t.m.data(), kHeads,
                                kSteps, nullptr);
  } catch (const xlstm::simt::Error& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
  return right(t) ? 0 : 1;
}
