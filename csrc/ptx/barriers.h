// barriers.h - what ends a wait at the barriers of a block and of a cluster.
#pragma once
#include "ptx/machine.h"

namespace xlstm::ptx {

void open_cluster_barrier_if_complete(Cluster& c);  // also when lanes have exited
void deliver(Cluster& c, size_t which);             // one st.async lands

}  // namespace xlstm::ptx
