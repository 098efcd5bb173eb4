// Rows of an archive on their way into a session and out of one: a part of restkv.h, which includes it.

#pragma once

// on: the caller carries the rows of the archive itself. States of the context can then be saved and loaded, which they
// cannot otherwise, and the rows stay whatever becomes of the text. Off again, they must be those of the text in the
// cells; where they are not, the cache is empty and RESTKV_STATE returned.
RESTKV_API restkv_status restkv_hold_archive(struct llama_context * ctx, bool on);

// Rows of one evicting layer, as the archive keeps them.
typedef struct restkv_archive_rows {
    uint32_t layer;  // number among the evicting layers, from 0
    uint32_t first;  // position
    uint32_t n;      // positions
    uint32_t reserved;
    size_t   n_k;    // bytes at k: n times what restkv_row_bytes says
    size_t   n_v;
    void *   k;      // [n][n_head_kv][values of a head]
    void *   v;
} restkv_archive_rows;

// Bytes of a row of K and of V of a layer.
RESTKV_API restkv_status restkv_row_bytes(struct llama_context * ctx, uint32_t layer, uint64_t * k, uint64_t * v);

// Copy rows out. Those of a file are compared with their checksums first.
RESTKV_API restkv_status restkv_read_rows(struct llama_context * ctx, const restkv_archive_rows * rows);

// While the archive is held: rows [0, n_rows) stay, and those behind are dropped; then rows are copied in, for every layer
// up to one position, and can be read after restkv_commit_rows() with that position. A failure leaves the rows before.
RESTKV_API restkv_status restkv_cut_rows(struct llama_context * ctx, uint32_t n_rows);
RESTKV_API restkv_status restkv_write_rows(struct llama_context * ctx, const restkv_archive_rows * rows);
RESTKV_API restkv_status restkv_commit_rows(struct llama_context * ctx, uint32_t n_rows);
