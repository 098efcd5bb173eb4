#include "stages/wo.h"

#include "api/status.h"
#include "ggml.h"
#include "gguf.h"
#include "model/files.h"
#include "model/hash.h"
#include "stages/parallel.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>

namespace fs = std::filesystem;

void restkv_add_gram(const float * w, size_t stride, uint32_t n_rows, uint32_t d, double * gram) {
    constexpr uint32_t ROWS = 16;  // float sums stay this short
    for (uint32_t r0 = 0; r0 < n_rows; r0 += ROWS) {
        const uint32_t r1 = std::min(n_rows, r0 + ROWS);
        for (uint32_t a = 0; a < d; ++a) {
            double * out = gram + (size_t) a * d;
            for (uint32_t r = r0; r < r1; ++r) {
                const float * row = w + r * stride;
                const double  x   = row[a];
                for (uint32_t b = a; b < d; ++b) {
                    out[b] += x * row[b];
                }
            }
        }
    }
}

void restkv_factor(const double * gram, uint32_t d, float * upper) {
    std::vector<double> r((size_t) d * d, 0.0);
    double              trace = 0.0;
    for (uint32_t i = 0; i < d; ++i) {
        trace += gram[(size_t) i * d + i];
    }
    const double tiny = trace / std::max(d, 1u) * 1e-13;
    for (uint32_t i = 0; i < d; ++i) {
        double * row = r.data() + (size_t) i * d;
        std::copy(gram + (size_t) i * d + i, gram + (size_t) (i + 1) * d, row + i);
        for (uint32_t k = 0; k < i; ++k) {
            const double * above = r.data() + (size_t) k * d;
            for (uint32_t j = i; j < d; ++j) {
                row[j] -= above[i] * above[j];
            }
        }
        const double root = row[i] > tiny ? std::sqrt(row[i]) : 0.0;
        for (uint32_t j = i; j < d; ++j) {
            row[j] = root > 0.0 ? row[j] / root : 0.0;
        }
    }
    std::copy(r.begin(), r.end(), upper);
}

// The fast Walsh-Hadamard transform of every block of n_rot values of x.
static void hadamard(double * x, uint32_t d, uint32_t n_rot) {
    const double norm = 1.0 / std::sqrt((double) n_rot);
    for (uint32_t b = 0; b + n_rot <= d; b += n_rot) {
        for (uint32_t half = 1; half < n_rot; half *= 2) {
            for (uint32_t i = 0; i < n_rot; i += 2 * half) {
                for (uint32_t j = i; j < i + half; ++j) {
                    double &     u    = x[b + j];
                    double &     v    = x[b + j + half];
                    const double diff = u - v;
                    u += v;
                    v = diff;
                }
            }
        }
        for (uint32_t j = 0; j < n_rot; ++j) {
            x[b + j] *= norm;
        }
    }
}

void restkv_rotate_factor(float * upper, uint32_t d, uint32_t n_rot) {
    // R H is a factor of H G H, but not an upper one: factor its Gram matrix again
    std::vector<double> rotated(upper, upper + (size_t) d * d);
    std::vector<double> gram((size_t) d * d, 0.0);
    for (uint32_t i = 0; i < d; ++i) {
        hadamard(rotated.data() + (size_t) i * d, d, n_rot);
    }
    for (uint32_t i = 0; i < d; ++i) {
        const double * row = rotated.data() + (size_t) i * d;
        for (uint32_t a = 0; a < d; ++a) {
            for (uint32_t b = a; b < d; ++b) {
                gram[(size_t) a * d + b] += row[a] * row[b];
            }
        }
    }
    restkv_factor(gram.data(), d, upper);
}

// ---- reading -----------------------------------------------------------------------------------

namespace {

struct weight {
    std::string path;
    uint64_t    offset = 0;
    uint64_t    size   = 0;
    ggml_type   type   = GGML_TYPE_F32;
    int64_t     n_in   = 0;
    int64_t     n_out  = 0;
};

std::vector<weight> find_weights(const std::string & path, const std::vector<restkv_wo_shape> & shapes) {
    std::vector<weight> weights(shapes.size());
    for (const restkv_gguf_file & file : restkv_open_gguf(path)) {
        const gguf_context * ctx  = file.ctx.get();
        const uint64_t       data = gguf_get_data_offset(ctx);
        for (size_t i = 0; i < shapes.size(); ++i) {
            const std::string name = "blk." + std::to_string(shapes[i].layer) + ".attn_output.weight";
            const int64_t     id   = gguf_find_tensor(ctx, name.c_str());
            if (id < 0) {
                continue;
            }
            const int64_t * ne = gguf_get_tensor_ne(ctx, id);
            weights[i]         = { file.path,
                                   data + gguf_get_tensor_offset(ctx, id),
                                   gguf_get_tensor_size(ctx, id),
                                   gguf_get_tensor_type(ctx, id),
                                   ne[0],
                                   ne[1] };
        }
    }
    for (size_t i = 0; i < shapes.size(); ++i) {
        const std::string layer = std::to_string(shapes[i].layer);
        if (weights[i].path.empty()) {
            throw std::runtime_error("layer " + layer + " has no attn_output.weight: set use_wo to false");
        }
        if (weights[i].n_in != (int64_t) shapes[i].n_head * shapes[i].d) {
            throw std::runtime_error("layer " + layer + ": the output projection takes " +
                                     std::to_string(weights[i].n_in) + " values, its heads give " +
                                     std::to_string((int64_t) shapes[i].n_head * shapes[i].d) +
                                     ": set use_wo to false");
        }
        if (ggml_get_type_traits(weights[i].type)->to_float == nullptr && weights[i].type != GGML_TYPE_F32) {
            throw std::runtime_error("layer " + layer + ": weights of type " + ggml_type_name(weights[i].type) +
                                     " cannot be read: set use_wo to false");
        }
    }
    return weights;
}

std::vector<uint8_t> read_bytes(const weight & w) {
    std::vector<uint8_t> bytes(w.size);
    std::ifstream        file(w.path, std::ios::binary);
    file.seekg((std::streamoff) w.offset);
    file.read((char *) bytes.data(), (std::streamsize) bytes.size());
    if (!file) {
        throw restkv_error(RESTKV_IO, w.path + " ends before its last tensor: download it again");
    }
    return bytes;
}

// ---- the cache on disk: one file per layer, so that a broken one costs one layer ------------------

struct cache_header {
    char     magic[8];
    uint32_t n_head;
    uint32_t d;
    uint64_t key;
    uint64_t check;
};

constexpr char CACHE_MAGIC[8] = { 'R', 'S', 'T', 'K', 'V', 'W', 'O', '2' };

fs::path cache_path(const std::string & folder, uint64_t key) {
    char name[32];
    snprintf(name, sizeof(name), "%016llx.wo", (unsigned long long) key);
    return fs::path(folder) / name;
}

bool read_cache(const std::string & folder, uint64_t key, restkv_wo::layer & layer) {
    std::ifstream file(cache_path(folder, key), std::ios::binary);
    cache_header  header;
    if (!file.read((char *) &header, sizeof(header)) || memcmp(header.magic, CACHE_MAGIC, 8) != 0 ||
        header.n_head != layer.n_head || header.d != layer.d || header.key != key) {
        return false;
    }
    std::vector<float> data((size_t) layer.n_head * layer.d * layer.d);
    file.read((char *) data.data(), (std::streamsize) (data.size() * sizeof(float)));
    if (!file || restkv_hash(data.data(), data.size() * sizeof(float), key) != header.check) {
        return false;
    }
    layer.data = std::move(data);
    return true;
}

// A cache that cannot be written costs time, not answers.
void write_cache(const std::string & folder, uint64_t key, const restkv_wo::layer & layer) {
    std::error_code error;
    fs::create_directories(folder, error);
    const fs::path path = cache_path(folder, key);
    const fs::path part = path.string() + "." + std::to_string((uint64_t) ggml_time_us()) + ".part";
    const size_t   size = layer.data.size() * sizeof(float);
    cache_header   header;
    memcpy(header.magic, CACHE_MAGIC, 8);
    header.n_head = layer.n_head;
    header.d      = layer.d;
    header.key    = key;
    header.check  = restkv_hash(layer.data.data(), size, key);
    {
        std::ofstream file(part, std::ios::binary);
        file.write((const char *) &header, sizeof(header));
        file.write((const char *) layer.data.data(), (std::streamsize) size);
        if (!file.flush()) {
            fs::remove(part, error);
            return;
        }
    }
    fs::rename(part, path, error);
    if (error) {
        fs::remove(part, error);
    }
}

void make_factors(const weight & w, const std::vector<uint8_t> & bytes, restkv_wo::layer & layer) {
    const auto * traits   = ggml_get_type_traits(w.type);
    const size_t row_size = ggml_row_size(w.type, w.n_in);
    const size_t dd       = (size_t) layer.d * layer.d;

    constexpr int64_t   ROWS = 16;
    std::vector<float>  rows((size_t) ROWS * w.n_in);
    std::vector<double> gram(layer.n_head * dd, 0.0);
    for (int64_t r0 = 0; r0 < w.n_out; r0 += ROWS) {
        const int64_t n = std::min(ROWS, w.n_out - r0);
        for (int64_t r = 0; r < n; ++r) {
            const uint8_t * src = bytes.data() + (r0 + r) * row_size;
            if (w.type == GGML_TYPE_F32) {
                memcpy(rows.data() + r * w.n_in, src, row_size);
            } else {
                traits->to_float(src, rows.data() + r * w.n_in, w.n_in);
            }
        }
        for (uint32_t h = 0; h < layer.n_head; ++h) {
            restkv_add_gram(rows.data() + (size_t) h * layer.d, w.n_in, (uint32_t) n, layer.d, gram.data() + h * dd);
        }
    }
    layer.data.resize(gram.size());
    for (uint32_t h = 0; h < layer.n_head; ++h) {
        restkv_factor(gram.data() + h * dd, layer.d, layer.data.data() + h * dd);
    }
}

}  // namespace

restkv_wo restkv_read_wo(const std::string & path_model, const std::string & path_cache,
                         const std::vector<restkv_wo_shape> & shapes, uint32_t n_threads) {
    const std::vector<weight> weights = find_weights(path_model, shapes);

    restkv_wo wo;
    for (const restkv_wo_shape & shape : shapes) {
        wo.layers.resize(std::max<size_t>(wo.layers.size(), shape.layer + 1));
        wo.layers[shape.layer] = { shape.n_head, shape.d, {} };
    }

    std::vector<std::exception_ptr> errors(shapes.size());
    restkv_parallel((uint32_t) shapes.size(), restkv_threads(n_threads, (uint32_t) shapes.size()),
                    [&](uint32_t i, uint32_t) {
                        try {
                            restkv_wo::layer &         layer = wo.layers[shapes[i].layer];
                            const std::vector<uint8_t> bytes = read_bytes(weights[i]);
                            const uint64_t seed = restkv_hash(&weights[i].type, sizeof(ggml_type), layer.n_head);
                            const uint64_t key  = restkv_hash(bytes.data(), bytes.size(), seed);
                            if (!path_cache.empty() && read_cache(path_cache, key, layer)) {
                                return;
                            }
                            make_factors(weights[i], bytes, layer);
                            if (!path_cache.empty()) {
                                write_cache(path_cache, key, layer);
                            }
                        } catch (...) {
                            errors[i] = std::current_exception();
                        }
                    });
    for (const std::exception_ptr & error : errors) {
        if (error) {
            std::rethrow_exception(error);
        }
    }
    return wo;
}
