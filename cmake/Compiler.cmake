# Refuses, in one sentence, a C++ compiler that the sources were not written for. build_plan.py has the same numbers for nvcc's.
set(oldest_GNU 9)      # the first with all of C++17 in a stable library
set(oldest_Clang 10)
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
