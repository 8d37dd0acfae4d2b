# Asks build_plan.py whether the CUDA kernels are built and for which GPUs, and enables CUDA if so.
#   in:  XLSTM_CUDA and the other switches, CMAKE_CUDA_ARCHITECTURES or the environment's CUDAARCHS
#   out: XLSTM_WITH_CUDA, XLSTM_ARCHITECTURES
set(wanted "${CMAKE_CUDA_ARCHITECTURES}")                # read before enable_language invents a default
if(NOT wanted AND DEFINED ENV{CUDAARCHS})
  set(wanted "$ENV{CUDAARCHS}")
endif()
unset(ENV{CUDAARCHS})                                    # every target sets its own
if(CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  set(ENV{CUDACXX} "${CMAKE_CUDA_COMPILER}")
endif()

execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/build_plan.py "XLSTM_CUDA=${XLSTM_CUDA}" "XLSTM_SIMT=${XLSTM_SIMT}"
    "XLSTM_SIMT_ASAN=${XLSTM_SIMT_ASAN}" "XLSTM_PTX=${XLSTM_PTX}" "CUDAARCHS=${wanted}"
  OUTPUT_VARIABLE plan COMMAND_ERROR_IS_FATAL ANY)
string(JSON refusal GET "${plan}" error)
if(refusal)
  message(FATAL_ERROR "xlstm_cuda: ${refusal}")
endif()
string(JSON sentence GET "${plan}" sentence)
message(NOTICE "xlstm_cuda: ${sentence}")

set(XLSTM_ARCHITECTURES "")
string(JSON XLSTM_WITH_CUDA GET "${plan}" cuda)
if(NOT XLSTM_WITH_CUDA)
  return()
endif()
string(JSON last LENGTH "${plan}" architectures)
math(EXPR last "${last} - 1")
foreach(index RANGE ${last})
  string(JSON architecture GET "${plan}" architectures ${index})
  list(APPEND XLSTM_ARCHITECTURES ${architecture})
endforeach()
string(JSON nvcc GET "${plan}" nvcc)
set(ENV{CUDACXX} "${nvcc}")
set(CMAKE_CUDA_ARCHITECTURES 80)                         # for CMake's own compiler check
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
