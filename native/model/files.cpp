#include "model/files.h"

#include "api/status.h"
#include "gguf.h"

#include <cstdio>
#include <cstring>

static gguf_context_ptr open_one(const std::string & path) {
    gguf_init_params params = { /*no_alloc =*/true, /*ctx =*/nullptr };
    gguf_context_ptr ctx(gguf_init_from_file(path.c_str(), params));
    if (!ctx) {
        throw restkv_error(RESTKV_IO, path + " cannot be read as a GGUF file: download it again");
    }
    return ctx;
}

std::vector<restkv_gguf_file> restkv_open_gguf(const std::string & path) {
    std::vector<restkv_gguf_file> files;
    files.push_back({ path, open_one(path) });
    const gguf_context * first = files[0].ctx.get();

    const int64_t key = gguf_find_key(first, "split.count");
    const int     n   = key >= 0 && gguf_get_kv_type(first, key) == GGUF_TYPE_UINT16 ? gguf_get_val_u16(first, key) : 1;
    if (n <= 1) {
        return files;
    }
    // model-00001-of-00003.gguf -> all three
    char tail[32];
    snprintf(tail, sizeof(tail), "-%05d-of-%05d.gguf", 1, n);
    const size_t len = strlen(tail);
    if (path.size() < len || path.compare(path.size() - len, len, tail) != 0) {
        throw restkv_error(RESTKV_IO,
                           "the model is split into " + std::to_string(n) + " files: open the first of them");
    }
    for (int i = 2; i <= n; ++i) {
        snprintf(tail, sizeof(tail), "-%05d-of-%05d.gguf", i, n);
        const std::string other = path.substr(0, path.size() - len) + tail;
        files.push_back({ other, open_one(other) });
    }
    return files;
}
