include_guard(GLOBAL) # a file for CMAKE_PROJECT_INCLUDE, which every project() reads

# llama-cpp-python installs llama.cpp's library of command-line helpers, which takes longer to compile than llama.cpp
# itself and which no Python code loads. Where it is not built, it is not installed.
function(install)
    if(NOT "llama-common" IN_LIST ARGN)
        _install(${ARGN})
    endif()
endfunction()
