# GCC before 14 tells its optimizer of 8 of the 64 bytes that `ldtilecfg` reads (GCC bug 114098, later mended in its older
# series too). The others are never written, and llama.cpp ends with a segmentation fault at its first product of
# quantized weights on a processor with AMX (ggml-org/llama.cpp#26954). Its AVX-512 takes over.
function (restkv_without_broken_amx)
    if (TARGET ggml-cpu AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU"
            AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 11 AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
        # Behind -march=native, which it takes back in part.
        target_compile_options(ggml-cpu PRIVATE -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
    endif()
endfunction()

# When all targets are there.
cmake_language(DEFER CALL restkv_without_broken_amx)
