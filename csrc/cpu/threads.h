// threads.h - the CPU backend's loop over independent pieces of work.
#pragma once
#include <cstdint>
#include <functional>

namespace xlstm::cpu {
void set_num_threads(int count);  // 0: every core
int get_num_threads();
// Calls body(index) once for every index in [0, count); a thread takes whole indices. The first exception is rethrown here.
void parallel_for(int64_t count, const std::function<void(int64_t)>& body);
}  // namespace xlstm::cpu
