// What can be used of the file of an archive, for instance after a crash.

#pragma once

#include "archive/store.h"

struct restkv_archive_found {
    uint32_t                          n_rows    = 0;  // leading positions whose rows are intact in every layer
    uint32_t                          n_written = 0;  // that its last commit names
    uint32_t                          n_ctx     = 0;
    std::vector<restkv_archive_layer> layers;
    std::string                       why;  // one sentence, where anything is amiss; "": all that was written is intact
};

// Reads all of it, and writes nothing. Throws nothing but std::bad_alloc: a file that is damaged, cut short or made to do
// harm, or that is in use, is said in `why`.
restkv_archive_found restkv_archive_check(const std::string & path);
