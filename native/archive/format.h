// How an archive lies in a file:
//
//   header      what it is, and its layers
//   commits     two records, written in turn: how many rows are there, and the checksums of the last, unfinished block
//   checksums   [block][layer][keys, values], of finished blocks
//   rows        per layer the keys of all positions, then the values
//
// A checksum goes over the rows of a block one after the other, from a seed that names block, layer and kind, so that it
// can be continued without reading the rows before, and a block in another's place is noticed. What a commit names is
// written before its record, and nothing that the record before it names is written over until then: whenever a process
// is killed, one of the two records holds. (A machine that loses power is another matter: nothing here waits for the disk.)

#pragma once

#include "archive/io.h"
#include "archive/store.h"

struct restkv_archive_format {
    uint32_t                          n_ctx;
    std::vector<restkv_archive_layer> layers;

    // Where things begin, in bytes, and the file's end.
    uint64_t              commits[2];
    uint64_t              sums;
    std::vector<uint64_t> keys, values;
    uint64_t              total;

    // Throws restkv_error with RESTKV_INVALID where 63 bits do not hold the file. The layers were checked.
    restkv_archive_format(uint32_t n_ctx, std::vector<restkv_archive_layer> layers);

    size_t n_sums() const { return 2 * layers.size(); }  // of a block

    uint64_t at(uint32_t l, bool value, uint32_t position) const {
        return (value ? values : keys)[l] + position * (uint64_t) row(l, value);
    }

    uint64_t at_sums(uint64_t block) const { return sums + block * n_sums() * sizeof(uint64_t); }

    size_t row(uint32_t l, bool value) const;
};

// Whether a file begins as an archive does, whatever its state.
bool restkv_is_archive(const restkv_file & file);

void restkv_write_header(restkv_file & file, const restkv_archive_format & format);

// Throws restkv_error: one sentence why this is no archive that can be used. Numbers of any kind are safe.
restkv_archive_format restkv_read_header(const restkv_file & file);

struct restkv_archive_commit {
    uint64_t              number = 0;  // of the commit, from 1; 0: there is none
    uint32_t              n_rows = 0;
    std::vector<uint64_t> sums;        // of the unfinished block, [layer][keys, values]; anything where there is none
};

// Of a record.
size_t restkv_commit_bytes(const restkv_archive_format & format);

// scratch: grows once to the size of a record.
void restkv_write_commit(restkv_file & file, const restkv_archive_format & format, uint64_t number, uint32_t n_rows,
                         const std::vector<uint64_t> & sums, std::vector<uint8_t> & scratch);

// The newest of the two that is whole. damaged: one of them is neither whole nor unwritten.
restkv_archive_commit restkv_read_commit(const restkv_file & file, const restkv_archive_format & format,
                                         bool & damaged);

// The checksum of a block that has no rows yet.
uint64_t restkv_block_seed(uint32_t block, uint32_t l, bool value);

// The checksum of the first n rows of a block, of `bytes` bytes each.
uint64_t restkv_block_sum(uint32_t block, uint32_t l, bool value, const uint8_t * rows, uint32_t n, size_t bytes);
