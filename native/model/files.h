// The GGUF files of a model: one, or all the files of a split one.

#pragma once

#include "ggml-cpp.h"

#include <string>
#include <vector>

struct restkv_gguf_file {
    std::string      path;
    gguf_context_ptr ctx;  // metadata and where the tensors are, without their data
};

// path: the file, or the first of a split model. Throws restkv_error with RESTKV_IO.
std::vector<restkv_gguf_file> restkv_open_gguf(const std::string & path);
