# Refuses, in one sentence, a C++ compiler that the sources were not written for.
set(oldest_GNU 9)      # the first with all of C++17 in a stable library
set(oldest_Clang 10)
if(NOT DEFINED oldest_${CMAKE_CXX_COMPILER_ID})
  message(FATAL_ERROR "xlstm_cuda needs g++ or clang++, got ${CMAKE_CXX_COMPILER_ID}: set CXX to one of them.")
endif()
if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS oldest_${CMAKE_CXX_COMPILER_ID})
  message(FATAL_ERROR "xlstm_cuda needs ${CMAKE_CXX_COMPILER_ID} ${oldest_${CMAKE_CXX_COMPILER_ID}} or newer, got "
    "${CMAKE_CXX_COMPILER_VERSION} (${CMAKE_CXX_COMPILER}): set CXX to a newer one.")
endif()
