#pragma once

namespace xlstm::selftest {
// h (BH, S, 64) and m (BH, S) of the parallel mLSTM: q, k, v (BH, S, 64) bfloat16, F cumulative log forget gates, I input gates
// (BH, S). The test kernel of the executor: cp.async stages, ldmatrix, mma, shuffles.
void mlstm_tile(const void* q, const void* k, const void* v, const float* F, const float* I, float* h, float* m, int BH, int S,
                void* stream);
}  // namespace xlstm::selftest
