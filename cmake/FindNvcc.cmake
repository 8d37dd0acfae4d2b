# Decides whether the CUDA kernels are built, and for which GPUs.
#   in:  XLSTM_CUDA (AUTO, ON, OFF), CMAKE_CUDA_ARCHITECTURES or the environment's CUDAARCHS
#   out: XLSTM_WITH_CUDA, XLSTM_ARCHITECTURES; the CUDA language is enabled when XLSTM_WITH_CUDA
set(XLSTM_WITH_CUDA OFF)
set(XLSTM_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")   # read before enable_language invents a default
if(NOT XLSTM_ARCHITECTURES AND DEFINED ENV{CUDAARCHS})
  set(XLSTM_ARCHITECTURES "$ENV{CUDAARCHS}")
endif()
unset(ENV{CUDAARCHS})                                    # every target sets its own

if(XLSTM_CUDA STREQUAL "OFF")
  message(NOTICE "xlstm_cuda: built without CUDA kernels (XLSTM_CUDA=OFF)")
  return()
endif()

# CMake alone looks on PATH only; a toolkit is often just a folder.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(XLSTM_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda /opt/cuda PATH_SUFFIXES bin)
  if(XLSTM_NVCC)
    set(ENV{CUDACXX} "${XLSTM_NVCC}")
  endif()
endif()
include(CheckLanguage)
set(CMAKE_CUDA_ARCHITECTURES 80)                         # for CMake's own compiler check
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(XLSTM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "XLSTM_CUDA=ON, but no working nvcc was found. Set CUDA_HOME to the CUDA toolkit, or CUDACXX to its nvcc.")
  endif()
  message(NOTICE "xlstm_cuda: built without CUDA kernels (no working nvcc found; XLSTM_CUDA=ON makes this an error)")
  return()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(XLSTM_WITH_CUDA ON)

if(NOT XLSTM_ARCHITECTURES)
  set(XLSTM_ARCHITECTURES 80-real 86-real 89-real 90a-real)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.9)
    list(APPEND XLSTM_ARCHITECTURES 100f-real 120f-real)
  endif()
  list(APPEND XLSTM_ARCHITECTURES 90-virtual)            # PTX for GPUs that come later
endif()
list(TRANSFORM XLSTM_ARCHITECTURES REPLACE "^90(-real)?$" "90a-real")   # wgmma needs the "a" target
message(NOTICE "xlstm_cuda: built with CUDA kernels (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${XLSTM_ARCHITECTURES})")
