// Chosen rows come into the cells of a layer: all are brought together first, so that a row that cannot be read leaves
// the cells as they are.

#include "archive/layer.h"
#include "cache/fault.h"
#include "cache/recaller.h"

#include <algorithm>
#include <cstring>

// Memory of the host that devices read themselves, for the rows of one layer; none where there is no such memory.
void restkv_recaller::init_shared() {
    ggml_backend_buffer_type_t type  = nullptr;
    size_t                     bytes = 0;
    for (uint32_t l = 0; l < core.layers.size(); ++l) {
        const restkv_layer & layer = core.layers[l];
        if (ggml_backend_buffer_is_host(restkv_buffer_of(layer.k)) || !devices.of(l)) {
            continue;
        }
        type  = type ? type : ggml_backend_dev_host_buffer_type(devices.of(l)->device);
        bytes = std::max(bytes, layer.budget * (layer.k->nb[1] + layer.v->nb[1]));
    }
    if (type) {
        shared.reset(ggml_backend_buft_alloc_buffer(type, bytes));
    }
}

// Positions of the rows before n_text that a head has in its cells, ascending.
std::vector<int32_t> restkv_recaller::live_of(uint32_t l, uint32_t h, uint32_t n_text) const {
    const restkv_sequence & seq    = core.seq;
    const int32_t *         table  = seq.layers[l].table.data() + (size_t) h * core.layers[l].budget;
    const uint32_t          n_held = seq.held(l, h);
    std::vector<int32_t>    live(table, table + n_held);
    for (int32_t pos = seq.pos_exact; pos < (int32_t) n_text; ++pos) {
        live.push_back(pos);
    }
    return live;
}

void restkv_recaller::want(uint32_t l, const int32_t * chosen, uint32_t n, bool live_only, uint32_t n_threads) {
    const restkv_layer &         layer = core.layers[l];
    const restkv_archive_layer & rows  = archive->layer(l);
    const bool                   host  = ggml_backend_buffer_is_host(restkv_buffer_of(layer.k));
    // a row in a cell is the archive's, bit for bit, where both have one type; a device's would have to be copied
    const bool use_cells = live_only || (host && rows.type_k == rows.cache_k && rows.type_v == rows.cache_v);

    const uint32_t tail = core.seq.tail_begin();
    n_new               = n;
    end_new             = 0;
    heads.resize(layer.n_head_kv);
    threads.resize(std::max<size_t>(threads.size(), n_threads));
    restkv_step("fetch");
    if (shared && !host) {
        new_k = (uint8_t *) ggml_backend_buffer_get_base(shared.get());
        new_v = new_k + n * layer.k->nb[1];
    } else {
        own_k.resize(n * layer.k->nb[1]);
        own_v.resize(n * layer.v->nb[1]);
        new_k = own_k.data();
        new_v = own_v.data();
    }

    int32_t end_cell = 0;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        wanted & head = heads[h];
        head.pos      = chosen + (size_t) h * n;
        head.cells.assign(n, -1);
        const int32_t * table  = core.seq.layers[l].table.data() + (size_t) h * layer.budget;
        const int32_t   n_held = (int32_t) core.seq.held(l, h);
        for (int32_t i = 0, j = 0; i < (int32_t) n; ++i) {
            const int32_t pos = head.pos[i];
            while (j < n_held && table[j] < pos) {
                ++j;
            }
            int32_t cell = -1;
            if (j < n_held && table[j] == pos) {
                cell = (int32_t) tail - n_held + j;
            } else if (pos >= core.seq.pos_exact) {
                cell = (int32_t) tail + pos - core.seq.pos_exact;
            }
            done.n_copied += cell < 0;
            head.cells[i] = use_cells ? cell : -1;
            end_cell      = std::max(end_cell, head.cells[i] + 1);
        }
        done.n_chosen += n;
        end_new = std::max(end_new, n > 0 ? (uint32_t) head.pos[n - 1] + 1 : 0);
    }

    cells_k = (const uint8_t *) layer.k->data;
    cells_v = (const uint8_t *) layer.v->data;
    if (!host && end_cell > 0) {
        copy_k.resize(end_cell * layer.k->nb[1]);
        copy_v.resize(end_cell * layer.v->nb[1]);
        ggml_backend_tensor_get(layer.k, copy_k.data(), 0, copy_k.size());
        ggml_backend_tensor_get(layer.v, copy_v.data(), 0, copy_v.size());
        cells_k = copy_k.data();
        cells_v = copy_v.data();
    }
}

// The new rows of the positions of one block of the archive, which is read when a row of it lies in no cell.
void restkv_recaller::fetch_block(uint32_t l, bool value, uint32_t from, own_thread & own) {
    const restkv_layer &         layer = core.layers[l];
    const restkv_archive_layer & rows  = archive->layer(l);
    const ggml_tensor *          cells = value ? layer.v : layer.k;
    const uint32_t               d     = value ? layer.d_v : layer.d_k;
    const ggml_type              type  = value ? rows.type_v : rows.type_k;
    const size_t                 head  = ggml_row_size(type, d);
    const size_t                 own_h = ggml_row_size(cells->type, d);
    own.floats.resize(d);
    const uint32_t end = std::min(from + restkv_archive::BLOCK, end_new);

    const uint8_t * block = nullptr;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        const wanted &  w     = heads[h];
        const int32_t * first = std::lower_bound(w.pos, w.pos + n_new, (int32_t) from);
        for (size_t i = first - w.pos; i < n_new && w.pos[i] < (int32_t) end; ++i) {
            uint8_t * to = (value ? new_v : new_k) + i * cells->nb[1] + h * own_h;
            if (w.cells[i] >= 0) {
                memcpy(to, (value ? cells_v : cells_k) + w.cells[i] * cells->nb[1] + h * own_h, own_h);
                continue;
            }
            if (!block) {
                block = value ? archive->values(l, from, end - from, own.rows) :
                                archive->keys(l, from, end - from, own.rows);
            }
            const size_t row = (size_t) (w.pos[i] - (int32_t) from) * layer.n_head_kv + h;
            restkv_convert_values(type, block + row * head, cells->type, to, d, own.floats.data());
        }
    }
}

void restkv_recaller::fetch(uint32_t l, const int32_t * chosen, uint32_t n, bool live_only,
                            restkv_member & member) noexcept {
    member.run_first([&] { want(l, chosen, n, live_only, member.n); });
    member.run([&] {
        const uint32_t step = member.n * restkv_archive::BLOCK;
        for (uint32_t from = member.i * restkv_archive::BLOCK; from < end_new; from += step) {
            fetch_block(l, false, from, threads[member.i]);
            fetch_block(l, true, from, threads[member.i]);
        }
    });
}

// Behind fetch(): the new rows are the cells' first ones.
void restkv_recaller::put(uint32_t l, restkv_member & member) noexcept {
    const restkv_layer & layer = core.layers[l];
    member.run([&] {
        if (!ggml_backend_buffer_is_host(restkv_buffer_of(layer.k))) {
            if (member.i == 0) {
                restkv_step("write");
                ggml_backend_tensor_set(layer.k, new_k, 0, n_new * layer.k->nb[1]);
                ggml_backend_tensor_set(layer.v, new_v, 0, n_new * layer.v->nb[1]);
            }
            return;
        }
        const uint32_t first = (uint32_t) ((uint64_t) n_new * member.i / member.n);
        const uint32_t n     = (uint32_t) ((uint64_t) n_new * (member.i + 1) / member.n) - first;
        for (const auto & [rows, t] : { std::pair(new_k, layer.k), std::pair(new_v, layer.v) }) {
            memcpy((uint8_t *) t->data + first * t->nb[1], rows + first * t->nb[1], n * t->nb[1]);
        }
    });
    member.run_first([&] {
        restkv_held & held = core.seq.layers[l];
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            std::copy_n(heads[h].pos, n_new, held.table.data() + (size_t) h * layer.budget);
            held.held[h] = n_new;
        }
    });
}
