// h.cu - the walk H in bfloat16 and float16.
#include "mlstm/walk/launch.cuh"

template void xlstm::mlstm::walk_16_bits<xlstm::mlstm::WalkUse::H>(const WalkParams&, int, int, Stream);
