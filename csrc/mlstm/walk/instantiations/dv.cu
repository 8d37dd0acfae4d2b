// dv.cu - the walk DV in bfloat16 and float16.
#include "mlstm/walk/launch.cuh"

template void xlstm::mlstm::walk_16_bits<xlstm::mlstm::WalkUse::DV>(const WalkParams&, int, int, Stream);
