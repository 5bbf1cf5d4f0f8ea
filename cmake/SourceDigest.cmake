# Sets TRB_SOURCE_DIGEST, a hash of the sources by which the source package of a checkout knows an installed build as its
# own.
execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/trbext/_source_digest.py ${CMAKE_CURRENT_SOURCE_DIR}
  OUTPUT_VARIABLE sources OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE status)
if(status)
  message(FATAL_ERROR "trbext: trbext/_source_digest.py could not read the sources")
endif()
string(REPLACE "\n" ";" sources "${sources}")
list(POP_FRONT sources TRB_SOURCE_DIGEST)
# `cmake --build` configures anew by itself when one of them has changed, so that no build holds the hash of older
# sources.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${sources})
