# Refuses, in one sentence, a C++ compiler that the sources were not written for. build_plan.py has the same numbers for nvcc's.
# 9 and 10 fuse multiply-adds differently in two copies of the same lines, so the sLSTM would not give bitwise the same h with and
# without saving for the gradients.
set(oldest_GNU 11)
set(oldest_Clang 11)   # the oldest that was tried
set(name_GNU g++)
set(name_Clang clang++)
set(id ${CMAKE_CXX_COMPILER_ID})
if(NOT DEFINED oldest_${id})
  message(FATAL_ERROR "xlstm_cuda needs g++ or clang++, got ${id} (${CMAKE_CXX_COMPILER}): set CXX to one of them.")
endif()
if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS oldest_${id})
  message(FATAL_ERROR "xlstm_cuda needs ${name_${id}} ${oldest_${id}} or newer, got ${CMAKE_CXX_COMPILER_VERSION} "
    "(${CMAKE_CXX_COMPILER}): set CXX to a newer one.")
endif()
