include_guard(GLOBAL) # a file for CMAKE_PROJECT_INCLUDE, which every project() reads

# llama-cpp-python installs llama.cpp's library of command-line helpers, which takes longer to compile than llama.cpp
# itself and which no Python code loads. Where it is not built, it is not installed.
function(install)
    if(NOT "llama-common" IN_LIST ARGN)
        _install(${ARGN})
    endif()
endfunction()

# Some virtual machines offer AMX and do not keep its registers, so that llama.cpp ends in an illegal instruction.
add_compile_options(-U__AMX_INT8__)
