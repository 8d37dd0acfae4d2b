// walks.h - the translation units of the walks, one per use, for walk.cu.
#pragma once
#include "mlstm/params.h"

namespace xlstm::mlstm {

void walk_h(const WalkParams& params, int L, Stream stream);
void walk_dq(const WalkParams& params, int L, Stream stream);
void walk_dk(const WalkParams& params, int L, Stream stream);
void walk_dv(const WalkParams& params, int L, Stream stream);
void walk_float32(const WalkParams& params, Stream stream);

}  // namespace xlstm::mlstm
