#pragma once

namespace xlstm {
// Raised with every change of a binding's signature; xlstm_cuda/native.py expects this number of every compiled module.
constexpr int kAbiVersion = 8;
}  // namespace xlstm
