#include "archive/check.h"

#include "api/status.h"
#include "archive/format.h"

#include <algorithm>

// Whether rows [0, n) of a block are those that the checksum was made of.
static bool intact(const restkv_file & file, const restkv_archive_format & format, uint32_t block, uint32_t l,
                   bool value, uint32_t n, uint64_t sum, std::vector<uint8_t> & rows) {
    const size_t row = format.row(l, value);
    rows.resize(n * row);
    file.read(format.at(l, value, block * restkv_archive::BLOCK), rows.data(), rows.size());
    return restkv_block_sum(block, l, value, rows.data(), n, row) == sum;
}

static void look(const std::string & path, restkv_archive_found & found) {
    const restkv_file           file   = restkv_file::open_read(path);
    const restkv_archive_format format = restkv_read_header(file);
    found.n_ctx                        = format.n_ctx;
    found.layers                       = format.layers;

    bool                        damaged;
    const restkv_archive_commit commit = restkv_read_commit(file, format, damaged);
    if (commit.number == 0) {
        throw restkv_error(RESTKV_ARCHIVE, damaged ? "both of its commits are damaged" : "nothing was committed to it");
    }
    found.n_written = commit.n_rows;
    std::vector<uint64_t> sums(format.n_sums());
    std::vector<uint8_t>  rows;
    while (found.n_rows < commit.n_rows) {
        const uint32_t block = found.n_rows / restkv_archive::BLOCK;
        const uint32_t n     = std::min(restkv_archive::BLOCK, commit.n_rows - found.n_rows);
        if (n == restkv_archive::BLOCK) {
            file.read(format.at_sums(block), sums.data(), sums.size() * sizeof(uint64_t));
        } else {
            sums = commit.sums;
        }
        for (uint32_t i = 0; i < format.n_sums(); ++i) {
            const uint32_t l = i / 2;
            if (!intact(file, format, block, l, i % 2, n, sums[i], rows)) {
                throw restkv_error(RESTKV_ARCHIVE, "it is damaged in layer " + std::to_string(l) + " from position " +
                                                       std::to_string(found.n_rows) + " on");
            }
        }
        found.n_rows += n;
    }
    if (damaged) {
        throw restkv_error(RESTKV_ARCHIVE, "one of its two commits is damaged, so newer rows may be missing");
    }
}

restkv_archive_found restkv_archive_check(const std::string & path) {
    restkv_archive_found found;
    try {
        look(path, found);
    } catch (const restkv_error & e) {
        found.why = "of " + path + " " + (found.n_rows > 0 ? "the first " + std::to_string(found.n_rows) : "no") +
                    " rows can be used: " + e.what();
    }
    return found;
}
