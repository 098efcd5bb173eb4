// Saved states: everything of a text in one format, whatever the allocation. llama.cpp's own format takes every layer for
// alike and knows no tables, so all of it is written here. Everything read is checked, since a state file may come from
// anywhere; what does not fit leaves an empty cache.

#include "api/status.h"
#include "cache/hooks.h"
#include "cache/recaller.h"

#include "llama-io.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace {

struct state_header {
    char      magic[8];
    int32_t   kind;  // of the allocation
    uint32_t  n_layer;
    uint32_t  window;
    uint32_t  n_row_max;  // most cells that survive an eviction
    uint32_t  start;      // first cell of a new text
    uint32_t  n_table;    // 0, or n_row_max
    uint32_t  n_tail;     // cells since the last eviction
    llama_pos pos_tail;   // of the first of them
    llama_pos pos_exact;
    llama_pos pos_seen;
    uint32_t  cursor;
    uint32_t  has_sums;
    uint32_t  n_ring;
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
    uint64_t n_ring;  // bytes
};

constexpr char MAGIC[8] = { 'R', 'S', 'T', 'K', 'V', 'S', 'T', '3' };

// Most queries that a saved ring may hold; a state with more is damaged.
constexpr uint32_t  RING_MAX  = 1u << 12;
// Positions of a saved text lie below this, and its evictions and dropped cells are no more than this.
constexpr llama_pos POS_MAX   = INT32_MAX / 2;
constexpr uint64_t  COUNT_MAX = 1ull << 48;

[[noreturn]] void reject(const std::string & why) {
    throw restkv_error(RESTKV_STATE, "the saved state does not fit: " + why);
}

[[noreturn]] void reject(const char * what, uint32_t saved, uint32_t own) {
    reject(std::string("its ") + what + " is " + std::to_string(saved) + " and this cache's is " + std::to_string(own));
}

// Rows of K and V that hold cells, of the layer.
struct span {
    size_t first;
    size_t n;
};

span saved_rows(const restkv_layer & layer, const restkv_held & held, uint32_t n_end) {
    const uint32_t hidden = std::max(held.hidden, layer.first);
    return { hidden - layer.first, n_end - hidden };
}

// Of a head, whose last n_window cells are the last positions before pos_end.
void read_positions(llama_io_read_i & io, int32_t * table, uint32_t n, uint32_t n_window, llama_pos pos_end) {
    io.read(table, n * sizeof(int32_t));
    for (uint32_t i = 0; i < n; ++i) {
        const bool window = i + n_window >= n && table[i] != pos_end - (llama_pos) (n - i);
        if (table[i] < 0 || table[i] >= pos_end || (i > 0 && table[i] <= table[i - 1]) || window) {
            reject("its positions are out of order");
        }
    }
}

// An eviction leaves each head its window at least. The heads of a layer hold the same number of cells, unless they share
// their budgets: then all of them together hold no more than those.
bool fits(const restkv_layer & layer, const std::vector<uint32_t> & held, uint32_t budget) {
    uint64_t sum = 0;
    for (const uint32_t n : held) {
        if (n < layer.n_window || n > layer.budget || (!layer.mask && n != held[0])) {
            return false;
        }
        sum += n;
    }
    return !layer.mask || sum <= (uint64_t) budget * layer.n_head_kv;
}

void read_votes(llama_io_read_i & io, float * sums, uint32_t n, uint32_t capacity) {
    std::fill(sums, sums + capacity, 0.0f);
    io.read(sums, n * sizeof(float));
    for (uint32_t i = 0; i < n; ++i) {
        if (!(sums[i] >= 0.0f && std::isfinite(sums[i]))) {
            reject("its votes are no sums of attention");
        }
    }
}

// A ring of more queries holds those that a smaller one needs. Returns what the rows of the smaller one hold.
std::vector<llama_pos> read_ring(llama_io_read_i & io, uint32_t n_saved, size_t n_own, llama_pos pos_end) {
    std::vector<llama_pos> saved(n_saved);
    if (n_saved > 0) {
        io.read(saved.data(), saved.size() * sizeof(llama_pos));
    }
    std::vector<llama_pos> ring(n_own, -1);
    for (uint32_t slot = 0; slot < n_saved; ++slot) {
        const llama_pos pos = saved[slot];
        if (pos == -1) {
            continue;
        }
        if (pos < 0 || pos >= pos_end || pos < pos_end - (llama_pos) n_saved || (uint32_t) pos % n_saved != slot) {
            reject("its queries are out of order");
        }
        if (n_own > 0) {
            llama_pos & own = ring[(uint32_t) pos % n_own];
            own             = std::max(own, pos);
        }
    }
    return ring;
}

// The rows that `ring` names, out of those of a ring of n_saved rows.
void read_queries(llama_io_read_i & io, const restkv_layer & layer, uint64_t n_bytes, uint32_t n_saved,
                  const std::vector<llama_pos> & ring) {
    const uint64_t n_row = (uint64_t) layer.n_head * layer.d_k * sizeof(float);
    const bool     whole = n_saved > 0 && n_bytes == (n_saved + 1ull) * n_row;
    if (!whole && (n_bytes != 0 || layer.ring)) {
        reject("its queries have another size");
    }
    if (layer.ring && n_saved == ring.size()) {
        io.read_tensor(layer.ring, 0, n_bytes);
        return;
    }
    std::vector<uint8_t> rows(n_bytes);
    if (n_bytes > 0) {
        io.read(rows.data(), rows.size());
    }
    for (uint32_t slot = 0; layer.ring && slot < ring.size(); ++slot) {
        if (ring[slot] != -1) {
            const size_t from = (uint32_t) ring[slot] % n_saved * n_row;
            ggml_backend_tensor_set(layer.ring, rows.data() + from, slot * n_row, n_row);
        }
    }
}

// The rows of an archive are in no state, and a cache without them would promise what it cannot keep; unless the caller
// carries them.
void refuse_archive(const restkv_core & core) {
    if (core.recaller && !core.recaller->held) {
        const char * reason = "a state does not hold an archive: use a cache without one";
        throw restkv_error(restkv_fail(RESTKV_UNSUPPORTED, reason), reason);
    }
}

}  // namespace

void restkv_cache::state_write(llama_io_write_i & io, llama_seq_id, llama_state_seq_flags) const {
    const restkv_sequence & seq   = core->seq;
    const uint32_t          n_end = core->n_end();
    const uint32_t          tail  = seq.tail_begin();
    refuse_archive(*core);
    for (uint32_t i = tail; i < n_end; ++i) {
        if (core->cells->is_empty(i) || (i > tail && core->pos_of(i) != core->pos_of(i - 1) + 1)) {
            throw std::runtime_error("positions of the text are missing in the cache: it cannot be saved");
        }
    }
    state_header header;
    memset(&header, 0, sizeof(header));
    memcpy(header.magic, MAGIC, sizeof(MAGIC));
    header.kind        = core->settings.shares.kind;
    header.n_layer     = (uint32_t) core->layers.size();
    header.window      = core->params.window;
    header.n_row_max   = core->n_row_max;
    header.start       = seq.start;
    header.n_table     = seq.n_table;
    header.n_tail      = n_end - tail;
    header.pos_tail    = header.n_tail > 0 ? core->pos_of(tail) : 0;
    header.pos_exact   = seq.pos_exact;
    header.pos_seen    = seq.pos_seen;
    header.cursor      = seq.cursor;
    header.has_sums    = core->method.accumulates ? 1 : 0;
    header.n_ring      = core->method.uses_queries ? (uint32_t) seq.ring_pos.size() : 0;
    header.n_evictions = seq.n_evictions;
    header.n_evicted   = seq.n_evicted;
    io.write(&header, sizeof(header));
    io.write(seq.ring_pos.data(), header.n_ring * sizeof(llama_pos));
    for (uint32_t l = 0; l < core->layers.size(); ++l) {
        const restkv_layer & layer = core->layers[l];
        const restkv_held &  held  = seq.layers[l];
        layer_header         own;
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
            const uint32_t n_held = seq.held(l, h);
            io.write(&n_held, sizeof(n_held));
            io.write(held.table.data() + (size_t) h * layer.budget, n_held * sizeof(int32_t));
            if (header.has_sums) {
                io.write(held.sums.data() + (size_t) h * core->params.capacity, n_end * sizeof(float));
            }
        }
        if (layer.ring) {
            io.write_tensor(layer.ring, 0, own.n_ring);
        }
        const span rows = saved_rows(layer, held, n_end);
        if (rows.n > 0) {
            io.write_tensor(layer.k, rows.first * own.row_k, rows.n * own.row_k);
            io.write_tensor(layer.v, rows.first * own.row_v, rows.n * own.row_v);
        }
    }
}

void restkv_cache::state_read(llama_io_read_i & io, llama_seq_id, llama_state_seq_flags) {
    restkv_sequence & seq = core->seq;
    try {
        clear(true);
        refuse_archive(*core);
        state_header header;
        io.read(&header, sizeof(header));
        if (memcmp(header.magic, MAGIC, sizeof(MAGIC)) != 0) {
            reject("it was saved without eviction, or by another version of restkv-local");
        }
        if (header.kind != core->settings.shares.kind || header.n_layer != core->layers.size()) {
            reject("its layers or its allocation differ");
        }
        // with one budget for all, nothing depends on it or on the window before the first eviction
        const bool evicted = header.n_table > 0 || core->is_shared();
        if (evicted && header.window != core->params.window) {
            reject("window", header.window, core->params.window);
        }
        if (evicted && header.n_row_max != core->n_row_max) {
            reject("budget", header.n_row_max, core->n_row_max);
        }
        if (header.start != seq.start || (header.n_table != 0 && header.n_table != core->n_row_max)) {
            reject("its tables differ in length");
        }
        const uint32_t tail = header.n_table > 0 ? core->n_row_max : seq.start;
        if (header.n_tail > get_size() - tail) {
            reject("it has more cells than this cache");
        }
        const bool follows = header.n_table == 0 ? header.pos_exact == 0 : header.pos_tail == header.pos_exact;
        if (header.pos_tail < 0 || header.pos_tail > POS_MAX || header.pos_exact < 0 || header.pos_exact > POS_MAX ||
            (!follows && (header.n_table == 0 || header.n_tail > 0))) {
            reject("its positions are out of order");
        }
        if (header.n_evictions > COUNT_MAX || header.n_evicted > COUNT_MAX ||
            (header.n_table > 0 && header.n_evictions == 0)) {
            reject("its evictions cannot be counted");
        }
        const llama_pos pos_end = header.n_tail > 0 ? header.pos_tail + (llama_pos) header.n_tail : header.pos_exact;
        if (header.pos_seen < 0 || header.pos_seen > pos_end) {
            reject("its positions are out of order");
        }
        if (header.has_sums != (core->method.accumulates ? 1u : 0u)) {
            reject("one of both caches counts votes (method h2o) and the other does not");
        }
        if (header.cursor > core->params.budget) {
            reject("it was saved by LaCache with a larger budget");
        }
        if (header.n_ring > RING_MAX || (core->method.uses_queries && header.n_ring < seq.ring_pos.size())) {
            reject("it holds fewer queries than this cache needs");
        }
        const size_t           n_own = core->method.uses_queries ? seq.ring_pos.size() : 0;
        std::vector<llama_pos> ring  = read_ring(io, header.n_ring, n_own, pos_end);
        for (uint32_t l = 0; l < core->layers.size(); ++l) {
            restkv_layer & layer = core->layers[l];
            restkv_held &  held  = seq.layers[l];
            layer_header   own;
            io.read(&own, sizeof(own));
            if ((evicted && own.budget != layer.budget) || own.n_head_kv != layer.n_head_kv ||
                own.type_k != layer.k->type || own.type_v != layer.v->type || own.row_k != layer.k->nb[1] ||
                own.row_v != layer.v->nb[1]) {
                reject("the budgets or the types of its layers differ");
            }
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                uint32_t n_held = 0;
                io.read(&n_held, sizeof(n_held));
                if (header.n_table == 0 ? n_held != 0 : n_held > layer.budget) {
                    reject("its heads hold other numbers of cells");
                }
                if (!core->is_shared() && n_held != header.n_table) {
                    reject("its heads hold other numbers of cells");
                }
                held.held[h]            = n_held;
                // cells that a recall is yet to choose may be any
                const uint32_t n_window = core->recaller ? 0 : layer.n_window;
                read_positions(io, held.table.data() + (size_t) h * layer.budget, n_held, n_window, header.pos_exact);
                if (header.has_sums) {
                    read_votes(io, held.sums.data() + (size_t) h * core->params.capacity, tail + header.n_tail,
                               core->params.capacity);
                }
            }
            if (header.n_table > 0 && !fits(layer, held.held, core->params.budget)) {
                reject("its heads hold other numbers of cells");
            }
            read_queries(io, layer, own.n_ring, header.n_ring, ring);
            held.hidden = header.n_table > 0 ? core->n_row_max - *std::max_element(held.held.begin(), held.held.end()) :
                                               seq.start;
            const span rows = saved_rows(layer, held, tail + header.n_tail);
            if (rows.n > 0) {
                io.read_tensor(layer.k, rows.first * own.row_k, rows.n * own.row_k);
                io.read_tensor(layer.v, rows.first * own.row_v, rows.n * own.row_v);
            }
        }
        if (header.n_table > 0) {
            set_cells(header.pos_exact);
        }
        set_tail(header.pos_tail, header.n_tail);
        std::copy(ring.begin(), ring.end(), seq.ring_pos.begin());
        seq.pos_exact   = header.pos_exact;
        seq.pos_seen    = header.pos_seen;
        seq.cursor      = header.cursor;
        seq.n_evictions = header.n_evictions;
        seq.n_evicted   = header.n_evicted;
    } catch (...) {
        restkv_caught(RESTKV_STATE);
        clear(true);
        throw;
    }
}

// n cells behind those of the tables, with positions from `pos` on.
void restkv_cache::set_tail(llama_pos pos, uint32_t n) {
    const uint32_t   begin = core->seq.tail_begin();
    llama_kv_cells & cells = v_cells[0];
    for (uint32_t i = 0; i < n; ++i) {
        cells.pos_set(begin + i, pos + (llama_pos) i);
        cells.seq_add(begin + i, 0);
    }
    v_heads[0] = std::min(begin + n, get_size() - 1);
}
