# Asks build_plan.py, before any language is enabled, whether the CUDA kernels are built and for which GPUs.
#   in:  the switches of CMakeLists.txt, CMAKE_CUDA_ARCHITECTURES or the environment's CUDAARCHS
#   out: XLSTM_WITH_CUDA, XLSTM_ARCHITECTURES; the environment's CUDACXX is the nvcc that was chosen
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
    "XLSTM_SIMT_ASAN=${XLSTM_SIMT_ASAN}" "XLSTM_PTX=${XLSTM_PTX}" "CUDAARCHS=${wanted}" "SYSTEM=${CMAKE_SYSTEM_NAME}"
  OUTPUT_VARIABLE plan COMMAND_ERROR_IS_FATAL ANY)
string(JSON refusal GET "${plan}" error)
if(refusal)
  message(FATAL_ERROR "xlstm_cuda: ${refusal}")
endif()
string(JSON sentence GET "${plan}" sentence)
message(NOTICE "xlstm_cuda: ${sentence}")

string(JSON XLSTM_WITH_CUDA GET "${plan}" cuda)
string(JSON XLSTM_ARCHITECTURES GET "${plan}" architectures)   # separated by ";", as CMake's lists are
if(XLSTM_WITH_CUDA)
  string(JSON nvcc GET "${plan}" nvcc)
  set(ENV{CUDACXX} "${nvcc}")
  set(CMAKE_CUDA_ARCHITECTURES 80)                       # for CMake's own compiler check
endif()
