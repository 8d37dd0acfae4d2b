# Refuses, in one sentence each, a system and a C++ compiler that the sources were not written for.
#   xlstm_require_system()     before a language is enabled
#   xlstm_require_compiler()   after C++ is enabled
function(xlstm_require_system)
  if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
    set(remedy_Windows "install it inside WSL 2, where the Linux instructions and the GPU work")
    set(remedy_Darwin "use a Linux container, where the CPU backend works")
    set(remedy "${remedy_${CMAKE_SYSTEM_NAME}}")
    if(NOT remedy)
      set(remedy "use a Linux machine or container")
    endif()
    set(name "${CMAKE_SYSTEM_NAME}")
    if(name STREQUAL "Darwin")
      set(name "macOS")
    endif()
    message(FATAL_ERROR "xlstm_cuda builds on Linux only, got ${name}: ${remedy}.")
  endif()
endfunction()

function(xlstm_require_compiler)
  set(oldest_GNU 9)      # the first with all of C++17 in a stable library
  set(oldest_Clang 10)
  if(NOT DEFINED oldest_${CMAKE_CXX_COMPILER_ID})
    message(FATAL_ERROR "xlstm_cuda needs g++ or clang++, got ${CMAKE_CXX_COMPILER_ID}: set CXX to one of them.")
  endif()
  set(oldest ${oldest_${CMAKE_CXX_COMPILER_ID}})
  if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS oldest)
    message(FATAL_ERROR "xlstm_cuda needs ${CMAKE_CXX_COMPILER_ID} ${oldest} or newer, got ${CMAKE_CXX_COMPILER_VERSION} "
      "(${CMAKE_CXX_COMPILER}): set CXX to a newer one.")
  endif()
endfunction()
