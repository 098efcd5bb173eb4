// A session carries the rows of the archive beside the state of the cells.

#include "cache/recaller.h"

void restkv_recaller::hold() {
    if (stale) {
        archive->truncate(0);
        stale = false;
    }
    held = true;
}

// Every row that may lie in no cell is there, and none of a text that is not.
bool restkv_recaller::fits_text() const {
    const uint32_t  n_end   = core.n_end();
    const llama_pos pos_end = n_end > core.seq.tail_begin() ? core.pos_of(n_end - 1) + 1 : core.seq.pos_exact;
    const llama_pos n_rows  = (llama_pos) archive->n_rows();
    return n_rows >= core.seq.pos_exact && n_rows <= pos_end;
}

restkv_archive & restkv_recaller::rows(bool write) {
    if (write && !held) {
        throw restkv_error(RESTKV_INVALID, "rows are copied into an archive only while it is held");
    }
    if (stale) {
        throw restkv_error(RESTKV_ARCHIVE, "the archive still holds rows of a text that is gone: clear the cache");
    }
    return *archive;
}
