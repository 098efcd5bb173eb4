// Save and restore of a cache whose layers or heads have budgets of their own. llama.cpp's own format takes every layer
// for alike, so all of it is written here; everything read is checked, since a state file may come from anywhere.

#include "restkv-cache.h"

#include "llama-io.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace {

struct shared_header {
    char      magic[8];
    int32_t   kind;
    uint32_t  n_layer;
    uint32_t  window;
    uint32_t  n_row_max;
    uint32_t  n_tail;    // cells since the last eviction
    uint32_t  n_table;   // 0, or n_row_max
    llama_pos pos_tail;  // of the first of them
    llama_pos pos_exact;
    uint64_t  n_evictions;
    uint64_t  n_evicted;
};

struct layer_header {
    uint32_t budget;
    uint32_t n_head_kv;
    int32_t  type_k;
    int32_t  type_v;
    uint64_t row_k;
    uint64_t row_v;
    uint64_t n_ring;
};

constexpr char MAGIC[8] = { 'R', 'S', 'T', 'K', 'V', 'S', 'H', '1' };

}  // namespace

void restkv_cache::shared_write(llama_io_write_i & io) const {
    shared_header header;
    memset(&header, 0, sizeof(header));
    memcpy(header.magic, MAGIC, sizeof(MAGIC));
    header.kind        = armed.shares.kind;
    header.n_layer     = (uint32_t) layers.size();
    header.window      = params.window;
    header.n_row_max   = n_row_max;
    header.n_tail      = n_end() - tail_begin();
    header.n_table     = n_table;
    header.pos_tail    = header.n_tail > 0 ? pos_of(tail_begin()) : 0;
    header.pos_exact   = pos_exact;
    header.n_evictions = n_evictions;
    header.n_evicted   = n_evicted;
    io.write(&header, sizeof(header));
    io.write(ring_pos.data(), ring_pos.size() * sizeof(llama_pos));
    for (const layer_state & layer : layers) {
        layer_header own;
        memset(&own, 0, sizeof(own));
        own.budget    = layer.budget;
        own.n_head_kv = layer.n_head_kv;
        own.type_k    = layer.k->type;
        own.type_v    = layer.v->type;
        own.row_k     = layer.k->nb[1];
        own.row_v     = layer.v->nb[1];
        own.n_ring    = layer.ring ? ggml_nbytes(layer.ring) : 0;
        io.write(&own, sizeof(own));
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            const uint32_t n_held = held(layer, h);
            io.write(&n_held, sizeof(n_held));
            io.write(layer.table.data() + (size_t) h * layer.budget, n_held * sizeof(int32_t));
        }
        if (layer.ring) {
            io.write_tensor(layer.ring, 0, own.n_ring);
        }
        const size_t from = layer.hidden - layer.first;
        const size_t n    = n_end() - layer.hidden;
        if (n > 0) {
            io.write_tensor(layer.k, from * own.row_k, n * own.row_k);
            io.write_tensor(layer.v, from * own.row_v, n * own.row_v);
        }
    }
}

void restkv_cache::shared_read(llama_io_read_i & io) {
    const auto reject = [](const std::string & why) {
        throw std::runtime_error("the saved state does not fit: " + why);
    };
    try {
        kv.clear(true);
        shared_header header;
        io.read(&header, sizeof(header));
        if (memcmp(header.magic, MAGIC, sizeof(MAGIC)) != 0) {
            reject("it was saved with another allocation");
        }
        if (header.kind != armed.shares.kind || header.n_layer != layers.size() || header.window != params.window ||
            header.n_row_max != n_row_max || (header.n_table != 0 && header.n_table != n_row_max)) {
            reject("its allocation, its layers or its window differ");
        }
        const uint32_t begin = header.n_table > 0 ? n_row_max : start;
        if (header.n_tail > kv.get_size() - begin) {
            reject("it has more cells than this cache");
        }
        if (header.pos_tail < 0 || header.pos_tail > INT32_MAX / 2 || header.pos_exact < 0 ||
            header.pos_exact > INT32_MAX / 2 ||
            (header.n_tail > 0 && header.n_table > 0 && header.pos_tail < header.pos_exact)) {
            reject("its positions are out of order");
        }
        std::vector<llama_pos> ring(ring_pos.size());
        io.read(ring.data(), ring.size() * sizeof(llama_pos));
        for (uint32_t slot = 0; slot < ring.size(); ++slot) {
            if (ring[slot] != -1 && (ring[slot] < 0 || (uint32_t) ring[slot] % (uint32_t) ring.size() != slot)) {
                reject("its queries are out of order");
            }
        }
        for (layer_state & layer : layers) {
            layer_header own;
            io.read(&own, sizeof(own));
            if (own.budget != layer.budget || own.n_head_kv != layer.n_head_kv || own.type_k != layer.k->type ||
                own.type_v != layer.v->type || own.row_k != layer.k->nb[1] || own.row_v != layer.v->nb[1] ||
                own.n_ring != (layer.ring ? ggml_nbytes(layer.ring) : 0)) {
                reject("the budgets or the types of its layers differ");
            }
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                uint32_t n_held = 0;
                io.read(&n_held, sizeof(n_held));
                if (header.n_table > 0 ? n_held == 0 || n_held > layer.budget : n_held != 0) {
                    reject("its heads hold other numbers of cells");
                }
                int32_t * table = layer.table.data() + (size_t) h * layer.budget;
                io.read(table, n_held * sizeof(int32_t));
                for (uint32_t i = 0; i < n_held; ++i) {
                    if (table[i] < (i > 0 ? table[i - 1] + 1 : 0) || table[i] >= header.pos_exact) {
                        reject("its positions are out of order");
                    }
                }
                layer.held[h] = n_held;
            }
            if (layer.ring) {
                io.read_tensor(layer.ring, 0, own.n_ring);
            }
            const uint32_t hidden =
                header.n_table > 0 ? n_row_max - *std::max_element(layer.held.begin(), layer.held.end()) : start;
            const size_t from = hidden - layer.first;
            const size_t n    = begin + header.n_tail - hidden;
            if (n > 0) {
                io.read_tensor(layer.k, from * own.row_k, n * own.row_k);
                io.read_tensor(layer.v, from * own.row_v, n * own.row_v);
            }
        }
        if (header.n_table > 0) {
            drop_cells(header.pos_exact);
        }
        llama_kv_cells & cells = kv.v_cells[0];
        for (uint32_t i = 0; i < header.n_tail; ++i) {
            cells.pos_set(begin + i, header.pos_tail + (llama_pos) i);
            cells.seq_add(begin + i, 0);
        }
        kv.v_heads[0] = std::min(begin + header.n_tail, kv.get_size() - 1);
        ring_pos      = std::move(ring);
        pos_exact     = header.pos_exact;
        n_evictions   = header.n_evictions;
        n_evicted     = header.n_evicted;
    } catch (const std::exception & e) {
        restkv_fail(RESTKV_IO, e.what());
        kv.clear(true);
        throw;
    }
}
