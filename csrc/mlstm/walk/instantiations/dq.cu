// dq.cu - the walk DQ in bfloat16 and float16.
#include "mlstm/walk/launch.cuh"

template void xlstm::mlstm::walk_16_bits<xlstm::mlstm::WalkUse::DQ>(const WalkParams&, int, int, Stream);
