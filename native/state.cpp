// Save and restore: what llama.cpp's own state lacks. Written after the cells of the cache; everything read is checked,
// since a state file may come from anywhere.

#include "restkv-cache.h"

#include "methods/methods.h"

#include "llama-io.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace {

struct state_header {
    char      magic[8];
    uint32_t  n_layer;
    uint32_t  window;
    uint32_t  n_table;
    llama_pos pos_exact;
    uint64_t  n_evictions;
    uint64_t  n_evicted;
    uint32_t  n_ring;
    uint32_t  cursor;
    llama_pos pos_seen;
    uint32_t  has_sums;
};

constexpr char MAGIC[8] = { 'R', 'S', 'T', 'K', 'V', 'S', 'T', '2' };

// Most positions that a saved ring may name, and most queries that it may hold; a state with more is damaged.
constexpr uint32_t RING_MAX = 1u << 24;
constexpr uint32_t ROWS_MAX = 1u << 12;

// The newest position whose query a saved ring holds, or -1. Throws where a row holds one that is not its own.
llama_pos newest(const std::vector<llama_pos> & ring) {
    llama_pos last = -1;
    for (uint32_t slot = 0; slot < ring.size(); ++slot) {
        if (ring[slot] != -1 && (ring[slot] < 0 || (uint32_t) ring[slot] % (uint32_t) ring.size() != slot)) {
            throw std::runtime_error("the saved state does not fit: its queries are out of order");
        }
        last = std::max(last, ring[slot]);
    }
    return last;
}

}  // namespace

void restkv_cache::state_write(llama_io_write_i & io) const {
    state_header header;
    memset(&header, 0, sizeof(header));
    memcpy(header.magic, MAGIC, sizeof(MAGIC));
    header.n_layer     = (uint32_t) layers.size();
    header.window      = params.window;
    header.n_table     = n_table;
    header.pos_exact   = pos_exact;
    header.n_evictions = n_evictions;
    header.n_evicted   = n_evicted;
    header.n_ring      = (uint32_t) ring_pos.size();
    header.cursor      = cursor;
    header.pos_seen    = pos_seen;
    header.has_sums    = method->accumulates ? 1 : 0;
    io.write(&header, sizeof(header));
    io.write(ring_pos.data(), ring_pos.size() * sizeof(llama_pos));
    for (const layer_state & layer : layers) {
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            io.write(layer.table.data() + (size_t) h * layer.budget, n_table * sizeof(int32_t));
            if (method->accumulates) {
                io.write(layer.sums.data() + (size_t) h * params.capacity, n_used() * sizeof(float));
            }
        }
        const uint64_t n_ring = layer.ring ? ggml_nbytes(layer.ring) : 0;
        io.write(&n_ring, sizeof(n_ring));
        if (layer.ring) {
            io.write_tensor(layer.ring, 0, n_ring);
        }
    }
}

void restkv_cache::state_read(llama_io_read_i & io) {
    const auto reject = [](const std::string & why) {
        throw std::runtime_error("the saved state does not fit: " + why);
    };
    try {
        state_header header;
        io.read(&header, sizeof(header));
        if (memcmp(header.magic, MAGIC, sizeof(MAGIC)) != 0) {
            reject("it was saved without eviction");
        }
        // A ring of more queries holds those that this cache needs; a cache without a ring needs none.
        const bool enough = !method->uses_queries || header.n_ring >= ring_pos.size();
        if (header.n_layer != layers.size() || header.n_ring > RING_MAX || !enough) {
            reject("its layers or its ring of queries differ");
        }
        if (header.has_sums != (method->accumulates ? 1u : 0u)) {
            reject("one of both caches counts votes (method h2o) and the other does not");
        }
        if (header.cursor > params.budget) {
            reject("its place in the ladder lies beyond the budget");
        }
        if (header.n_table > params.budget || header.n_table > n_used()) {
            reject("its budget is larger than this cache's");
        }
        const llama_kv_cells & cells = kv.v_cells[0];
        if (header.pos_exact < 0 || header.pos_exact > (int64_t) cells.seq_pos_max(0) + 1) {
            reject("its positions are out of order");
        }
        if (header.pos_seen < 0 || header.pos_seen > (int64_t) cells.seq_pos_max(0) + 1) {
            reject("its positions are out of order");
        }
        // the tables stand for the first cells; the positions of the others follow each other
        for (uint32_t i = 0; i < n_used(); ++i) {
            const llama_pos pos  = cells.is_empty(i) || !cells.seq_has(i, 0) ? -1 : cells.pos_get(i);
            const bool      next = i < header.n_table  ? pos < header.pos_exact :
                                   i == header.n_table ? pos >= header.pos_exact :
                                                         pos == cells.pos_get(i - 1) + 1;
            if (pos < 0 || pos > INT32_MAX / 2 || !next) {
                reject("its cells are out of order");
            }
        }
        std::vector<llama_pos> saved(header.n_ring);
        io.read(saved.data(), saved.size() * sizeof(llama_pos));
        const llama_pos        last = newest(saved);
        std::vector<llama_pos> ring(ring_pos.size(), -1);
        for (const llama_pos pos : saved) {
            if (method->uses_queries && pos != -1 && pos > last - (llama_pos) ring.size()) {
                ring[(uint32_t) pos % (uint32_t) ring.size()] = pos;
            }
        }
        std::vector<uint8_t> rows;
        for (layer_state & layer : layers) {
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                int32_t * table = layer.table.data() + (size_t) h * layer.budget;
                io.read(table, header.n_table * sizeof(int32_t));
                for (uint32_t i = 0; i < header.n_table; ++i) {
                    if (table[i] < (i > 0 ? table[i - 1] + 1 : 0) || table[i] >= header.pos_exact) {
                        reject("its positions are out of order");
                    }
                }
                if (method->accumulates) {
                    float * sums = layer.sums.data() + (size_t) h * params.capacity;
                    std::fill(sums, sums + params.capacity, 0.0f);
                    io.read(sums, n_used() * sizeof(float));
                    for (uint32_t i = 0; i < n_used(); ++i) {
                        if (!(sums[i] >= 0.0f && std::isfinite(sums[i]))) {
                            reject("its votes are no sums of attention");
                        }
                    }
                }
            }
            std::fill(layer.held.begin(), layer.held.end(), header.n_table);
            uint64_t n_bytes = 0;
            io.read(&n_bytes, sizeof(n_bytes));
            const uint64_t n_row = (uint64_t) layer.n_head * layer.d_k * sizeof(float);
            const bool     whole = header.n_ring <= ROWS_MAX && n_bytes == (header.n_ring + 1ull) * n_row;
            if (!whole && (n_bytes != 0 || layer.ring)) {
                reject("its queries have another size");
            }
            if (layer.ring && ring.size() == saved.size()) {
                io.read_tensor(layer.ring, 0, n_bytes);
            } else {
                rows.resize(n_bytes);
                io.read(rows.data(), rows.size());
                for (uint32_t slot = 0; layer.ring && slot < ring.size(); ++slot) {
                    if (ring[slot] != -1) {
                        const size_t from = (uint32_t) ring[slot] % header.n_ring * n_row;
                        ggml_backend_tensor_set(layer.ring, rows.data() + from, slot * n_row, n_row);
                    }
                }
            }
        }
        ring_pos      = std::move(ring);
        n_table       = header.n_table;
        pos_exact     = header.pos_exact;
        cursor        = header.cursor;
        pos_seen      = header.pos_seen;
        votes_lost[0] = 0;
        n_evictions   = header.n_evictions;
        n_evicted     = header.n_evicted;
    } catch (const std::exception & e) {
        restkv_fail(RESTKV_IO, e.what());
        kv.clear(true);
        throw;
    }
}
