# Defines the target trb_torch: the headers of torch's stable ABI and the two libraries that hold its symbols.
#
# find_package(Torch) would not do: its config demands a full CUDA toolkit if torch is a CUDA build, and forces its own
# flags. TORCH_TARGET_VERSION 2.10 lets one binary load under every later torch.
execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/build_support/find_torch.py
  OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE status)
if(status)
  message(FATAL_ERROR "trbext: PyTorch >= 2.10 not found. Install it first (pip install torch), or set the environment "
    "variable TRB_TORCH_DIR to the torch package directory.")
endif()
string(REPLACE "\n" ";" found "${found}")
list(GET found 0 torch_dir)
list(GET found 1 TRB_TORCH_VERSION)
message(STATUS "trbext: headers of torch ${TRB_TORCH_VERSION} at ${torch_dir}")

find_library(TRB_LIBTORCH torch PATHS "${torch_dir}/lib" NO_DEFAULT_PATH NO_CACHE REQUIRED)
find_library(TRB_LIBTORCH_CPU torch_cpu PATHS "${torch_dir}/lib" NO_DEFAULT_PATH NO_CACHE REQUIRED)

add_library(trb_torch INTERFACE)
target_include_directories(trb_torch SYSTEM INTERFACE "${torch_dir}/include")
target_compile_definitions(trb_torch INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
if(APPLE)
  target_link_libraries(trb_torch INTERFACE "${TRB_LIBTORCH}" "${TRB_LIBTORCH_CPU}")
else()
  # libtorch.so provides no symbol itself but pulls in libtorch_cuda.so if there is one, so the linker must not drop it.
  target_link_options(trb_torch INTERFACE
    "LINKER:--no-as-needed" "${TRB_LIBTORCH}" "${TRB_LIBTORCH_CPU}" "LINKER:--as-needed")
endif()
