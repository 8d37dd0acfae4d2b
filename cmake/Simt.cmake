# The host executor: the CUDA kernels compiled by the C++ compiler, in up to three modules with the same functions.
#   _simt        plain, the fastest
#   _simt_trace  every memory access reported: race detector, memory profile (-fsanitize=thread without libtsan)
#   _simt_asan   address and undefined-behaviour checks; only with XLSTM_SIMT_ASAN=ON; needs LD_PRELOAD of libasan
# NVIDIA's type headers are needed, a toolkit is not: the wheels nvidia-cuda-runtime and nvidia-cuda-crt have them.

execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_paths()['purelib'])"
  OUTPUT_VARIABLE XLSTM_SITE_PACKAGES OUTPUT_STRIP_TRAILING_WHITESPACE)
find_path(XLSTM_CUDA_HEADERS cuda_bf16.h
  HINTS ${CUDAToolkit_INCLUDE_DIRS} ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda /opt/cuda
        ${XLSTM_SITE_PACKAGES}/nvidia/cu13 ${XLSTM_SITE_PACKAGES}/nvidia/cuda_runtime
  PATH_SUFFIXES include targets/x86_64-linux/include NO_DEFAULT_PATH)
if(NOT XLSTM_CUDA_HEADERS OR NOT EXISTS "${XLSTM_CUDA_HEADERS}/crt/host_defines.h")
  message(FATAL_ERROR
    "XLSTM_SIMT=ON, but cuda_bf16.h and crt/host_defines.h were not found together. Without a CUDA toolkit, run "
    "`pip install nvidia-cuda-runtime nvidia-cuda-crt` first, or point XLSTM_CUDA_HEADERS at the headers.")
endif()
message(NOTICE "xlstm_cuda: built with the host executor (CUDA headers of ${XLSTM_CUDA_HEADERS})")

# A one-line .cpp per kernel file, so that the compiler takes it as C++ and line numbers stay those of the kernel file.
set(XLSTM_SIMT_KERNELS)
foreach(kernel ${XLSTM_KERNELS} ${XLSTM_SELFTEST_KERNELS} csrc/simt/selftest/planted_bugs.cu)
  string(REPLACE "/" "_" name ${kernel})
  set(wrapper ${PROJECT_BINARY_DIR}/generated/simt/${name}.cpp)
  file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${PROJECT_SOURCE_DIR}/${kernel}\"\n" @ONLY)
  list(APPEND XLSTM_SIMT_KERNELS ${wrapper})
endforeach()

file(GLOB XLSTM_SIMT_RUNTIME CONFIGURE_DEPENDS csrc/simt/*.cpp)
list(REMOVE_ITEM XLSTM_SIMT_RUNTIME ${PROJECT_SOURCE_DIR}/csrc/simt/instrumented.cpp)

function(xlstm_simt_objects name)
  add_library(${name} OBJECT ${ARGN})
  target_include_directories(${name} PRIVATE csrc ${PROJECT_BINARY_DIR}/generated)
  target_include_directories(${name} SYSTEM PRIVATE ${XLSTM_CUDA_HEADERS})
  target_compile_options(${name} PRIVATE -Wall -Wextra -Wno-unknown-pragmas -g1)
endfunction()

xlstm_simt_objects(xlstm_simt_bindings csrc/bindings.cpp csrc/mlstm/bind_sequence.cpp csrc/simt/selftest/bind.cpp)
target_compile_definitions(xlstm_simt_bindings PRIVATE XLSTM_SIMT_MODULE XLSTM_SELFTEST)
target_compile_options(xlstm_simt_bindings PRIVATE -O1)
target_link_libraries(xlstm_simt_bindings PRIVATE pybind11::module)

# name, flags of the kernels, flags of the executor and the link
function(xlstm_simt_module name runtime kernel_flags link_flags)
  xlstm_simt_objects(${name}_kernels ${XLSTM_SIMT_KERNELS})
  target_compile_options(${name}_kernels PRIVATE -O2 ${kernel_flags})
  pybind11_add_module(${name} MODULE NO_EXTRAS csrc/simt/instrumented.cpp csrc/cpu/threads.cpp)
  target_include_directories(${name} PRIVATE csrc)
  target_include_directories(${name} SYSTEM PRIVATE ${XLSTM_CUDA_HEADERS})
  target_link_libraries(${name} PRIVATE ${name}_kernels ${runtime} xlstm_simt_bindings Threads::Threads ${CMAKE_DL_LIBS})
  target_link_options(${name} PRIVATE -Wl,--exclude-libs,ALL ${link_flags})
  install(TARGETS ${name} LIBRARY DESTINATION xlstm_cuda)
endfunction()

xlstm_simt_objects(xlstm_simt_runtime ${XLSTM_SIMT_RUNTIME})
target_link_libraries(xlstm_simt_runtime PRIVATE pybind11::module)
xlstm_simt_module(_simt xlstm_simt_runtime "" "")
xlstm_simt_module(_simt_trace xlstm_simt_runtime "-fsanitize=thread;--param=tsan-instrument-func-entry-exit=0" "")
target_compile_definitions(_simt_trace PRIVATE XLSTM_SIMT_INSTRUMENTED)

if(XLSTM_SIMT_ASAN)
  set(sanitize -fsanitize=address,undefined -fno-sanitize-recover=undefined)
  xlstm_simt_objects(xlstm_simt_runtime_asan ${XLSTM_SIMT_RUNTIME})
  target_compile_options(xlstm_simt_runtime_asan PRIVATE -fsanitize=address)
  target_link_libraries(xlstm_simt_runtime_asan PRIVATE pybind11::module)
  xlstm_simt_module(_simt_asan xlstm_simt_runtime_asan "${sanitize}" "-fsanitize=address,undefined")
endif()
