#include "model/fingerprint.h"

#include "api/status.h"
#include "gguf.h"
#include "model/files.h"
#include "model/hash.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <vector>

namespace {

// Pieces of a tensor that are read, spread evenly from its first byte to its last; a tensor as small as all of them
// together is read whole. A fine-tune changes some of the thousands of weights that these are, of whatever quantization.
constexpr size_t PIECES      = 8;
constexpr size_t PIECE_BYTES = 512;

class digest {
public:
    void add(const void * data, size_t n) {
        const uint64_t size = n;  // where a part ends counts too
        for (uint64_t & h : state) {
            h = restkv_hash(data, n, restkv_hash(&size, sizeof(size), h));
        }
    }

    void add(const char * text) { add(text, strlen(text)); }

    std::string text() const {
        char out[48];
        snprintf(out, sizeof(out), "1-%016llx%016llx", (unsigned long long) state[0], (unsigned long long) state[1]);
        return out;
    }

private:
    uint64_t state[2] = { 0x6A09E667F3BCC908ull, 0xBB67AE8584CAA73Bull };
};

size_t size_of(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:
            return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:
            return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32:
            return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64:
            return 8;
        default:
            return 0;
    }
}

void add_value(digest & out, const gguf_context * ctx, int64_t id) {
    const gguf_type type = gguf_get_kv_type(ctx, id);
    out.add(&type, sizeof(type));
    if (type == GGUF_TYPE_STRING) {
        out.add(gguf_get_val_str(ctx, id));
    } else if (type != GGUF_TYPE_ARRAY) {
        out.add(gguf_get_val_data(ctx, id), size_of(type));
    } else if (const gguf_type of = gguf_get_arr_type(ctx, id); of == GGUF_TYPE_STRING) {
        for (size_t i = 0; i < gguf_get_arr_n(ctx, id); ++i) {
            out.add(gguf_get_arr_str(ctx, id, i));
        }
    } else if (gguf_get_arr_n(ctx, id) > 0) {
        out.add(&of, sizeof(of));
        out.add(gguf_get_arr_data(ctx, id), gguf_get_arr_n(ctx, id) * size_of(of));
    }
}

// The first file has all that a model says; the others repeat a part of it. How it is split is no part of the model.
void add_metadata(digest & out, const gguf_context * ctx) {
    std::map<std::string, int64_t> keys;
    for (int64_t id = 0; id < gguf_get_n_kv(ctx); ++id) {
        const std::string key = gguf_get_key(ctx, id);
        if (key.compare(0, 6, "split.") != 0) {
            keys[key] = id;
        }
    }
    for (const auto & [key, id] : keys) {
        out.add(key.c_str());
        add_value(out, ctx, id);
    }
}

struct tensor {
    size_t   file;
    int64_t  id;
    uint64_t size;
};

void add_tensor(digest & out, const restkv_gguf_file & file, std::ifstream & data, const tensor & t) {
    const gguf_context * ctx  = file.ctx.get();
    const int32_t        type = gguf_get_tensor_type(ctx, t.id);
    out.add(gguf_get_tensor_name(ctx, t.id));
    out.add(&type, sizeof(type));
    out.add(gguf_get_tensor_ne(ctx, t.id), GGML_MAX_DIMS * sizeof(int64_t));

    const uint64_t begin = gguf_get_data_offset(ctx) + gguf_get_tensor_offset(ctx, t.id);
    const bool     whole = t.size <= PIECES * PIECE_BYTES;
    const size_t   n     = whole ? (size_t) t.size : PIECE_BYTES;
    char           bytes[PIECES * PIECE_BYTES];
    for (size_t i = 0; i < (whole ? 1 : PIECES); ++i) {
        data.seekg((std::streamoff) (begin + (t.size - n) * i / (PIECES - 1)));
        data.read(bytes, (std::streamsize) n);
        if (!data) {
            throw restkv_error(RESTKV_IO, file.path + " ends before its last tensor: download it again");
        }
        out.add(bytes, n);
    }
}

}  // namespace

std::string restkv_fingerprint_of(const std::string & path) {
    const std::vector<restkv_gguf_file> files = restkv_open_gguf(path);

    digest out;
    add_metadata(out, files[0].ctx.get());

    std::map<std::string, tensor> tensors;  // by name: in one file they have another order than in several
    std::vector<std::ifstream>    data(files.size());
    for (size_t f = 0; f < files.size(); ++f) {
        const gguf_context * ctx = files[f].ctx.get();
        data[f].rdbuf()->pubsetbuf(nullptr, 0);  // the pieces are far apart
        data[f].open(files[f].path, std::ios::binary);
        for (int64_t id = 0; id < gguf_get_n_tensors(ctx); ++id) {
            tensors[gguf_get_tensor_name(ctx, id)] = { f, id, gguf_get_tensor_size(ctx, id) };
        }
    }
    for (const auto & [name, t] : tensors) {
        add_tensor(out, files[t.file], data[t.file], t);
    }
    return out.text();
}
