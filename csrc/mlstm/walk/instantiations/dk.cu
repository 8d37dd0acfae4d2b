// dk.cu - the walk DK in bfloat16 and float16.
#include "mlstm/walk/launch.cuh"

template void xlstm::mlstm::walk_16_bits<xlstm::mlstm::WalkUse::DK>(const WalkParams&, int, int, Stream);
