#include "archive/store.h"

#include "api/status.h"
#include "archive/kinds.h"
#include "archive/layer.h"

#include <algorithm>
#include <new>

std::unique_ptr<restkv_archive> restkv_archive::make(int32_t place, const std::string & path, uint32_t n_ctx,
                                                     std::vector<restkv_archive_layer> layers) {
    if (place != RESTKV_PLACE_RAM && place != RESTKV_PLACE_FILE) {
        throw restkv_error(RESTKV_INVALID, "an archive lies in memory or in a file: place is 1 or 2");
    }
    if (n_ctx == 0 || layers.empty()) {
        throw restkv_error(RESTKV_INVALID, "an archive needs at least one layer and one position");
    }
    if (layers.size() > RESTKV_ARCHIVE_LAYER_MAX) {
        throw restkv_error(RESTKV_INVALID, std::to_string(layers.size()) + " layers are more than an archive holds");
    }
    for (const restkv_archive_layer & layer : layers) {
        restkv_check_archive_layer(layer);
    }
    try {
        return place == RESTKV_PLACE_RAM ? restkv_make_archive_ram(n_ctx, std::move(layers)) :
                                           restkv_make_archive_file(path, n_ctx, std::move(layers));
    } catch (const std::bad_alloc &) {
        throw restkv_error(RESTKV_NO_MEMORY, "memory ran out while the archive was made: use a smaller n_ctx");
    }
}

restkv_archive::restkv_archive(uint32_t n_ctx, std::vector<restkv_archive_layer> layers) :
    n_ctx_(n_ctx),
    layers_(std::move(layers)),
    end_(layers_.size(), 0) {
    size_t most = 0;
    for (const restkv_archive_layer & layer : layers_) {
        row_k_.push_back(restkv_archive_row(layer, false));
        row_v_.push_back(restkv_archive_row(layer, true));
        most = std::max(most, (size_t) layer.n_head_kv * std::max(layer.d_k, layer.d_v));
    }
    floats_.resize(most);
}

static std::string positions(uint32_t from, uint64_t to) {
    return "positions " + std::to_string(from) + " to " + std::to_string(to) + " of the archive";
}

void restkv_archive::check_append(uint32_t l, uint32_t first, uint32_t n) const {
    if (l >= n_layer()) {
        throw restkv_error(RESTKV_INVALID, "the archive has no layer " + std::to_string(l));
    }
    if (n > n_ctx_ || first > n_ctx_ - n) {
        throw restkv_error(RESTKV_INVALID, positions(first, (uint64_t) first + n) + " lie beyond its context of " +
                                               std::to_string(n_ctx_) + ": use a larger n_ctx");
    }
    if (first != n_rows_ && first != end_[l]) {
        throw restkv_error(RESTKV_INVALID, "position " + std::to_string(first) +
                                               " is not the next one of the archive, " + std::to_string(end_[l]) +
                                               " is");
    }
}

void restkv_archive::check_commit(uint32_t n_rows) const {
    for (uint32_t l = 0; l < n_layer(); ++l) {
        if (end_[l] != n_rows) {
            throw restkv_error(RESTKV_INVALID, "layer " + std::to_string(l) + " of the archive holds " +
                                                   std::to_string(end_[l]) + " rows, not " + std::to_string(n_rows));
        }
    }
}

void restkv_archive::check_read(uint32_t l, uint32_t from, uint32_t n) const {
    if (l >= n_layer()) {
        throw restkv_error(RESTKV_INVALID, "the archive has no layer " + std::to_string(l));
    }
    if (n > n_rows_ || from > n_rows_ - n) {
        throw restkv_error(RESTKV_INVALID, positions(from, (uint64_t) from + n) + " cannot be read: it holds " +
                                               std::to_string(n_rows_));
    }
}

void restkv_archive::check_cut(uint32_t n_rows) const {
    if (n_rows > n_rows_) {
        throw restkv_error(RESTKV_INVALID, "the archive holds " + std::to_string(n_rows_) +
                                               " rows and cannot be cut at " + std::to_string(n_rows));
    }
}

void restkv_archive::settle(uint32_t n_rows) {
    n_rows_ = n_rows;
    std::fill(end_.begin(), end_.end(), n_rows);
}

bool restkv_archive::same_type(uint32_t l, bool value) const {
    const restkv_archive_layer & layer = layers_[l];
    return value ? layer.cache_v == layer.type_v : layer.cache_k == layer.type_k;
}

size_t restkv_archive::convert(uint32_t l, bool value, uint32_t n, const uint8_t * src, uint8_t * dst) {
    const restkv_archive_layer & layer = layers_[l];
    const ggml_type              from  = value ? layer.cache_v : layer.cache_k;
    const ggml_type              to    = value ? layer.type_v : layer.type_k;
    const int64_t                width = (int64_t) layer.n_head_kv * (value ? layer.d_v : layer.d_k);
    const size_t                 bytes = ggml_row_size(from, width);
    for (uint32_t i = 0; i < n; ++i) {
        restkv_convert_values(from, src + i * bytes, to, dst + i * row(l, value), width, floats_.data());
    }
    return n * bytes;
}
