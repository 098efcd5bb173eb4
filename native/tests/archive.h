// The archive of a cache: round trips, damage, and processes that are killed. What the three files share stands here.

#pragma once

#include "api/status.h"
#include "archive/store.h"
#include "tests/check.h"

#include <string>
#include <vector>

void restkv_test_archive();
void restkv_test_archive_damage();
void restkv_test_archive_killed();

// A path in a folder of this process, with nothing there.
std::string archive_path(const std::string & name);

// Two layers that differ in everything.
std::vector<restkv_archive_layer> archive_layers(ggml_type first = GGML_TYPE_F16, ggml_type second = GGML_TYPE_Q8_0);

// A row as the cache holds it: bytes that depend on all of these, and are another row in each generation.
std::vector<uint8_t> archive_row(const restkv_archive_layer & layer, uint32_t l, bool value, uint32_t position,
                                 uint32_t generation);

// Appends the positions [from, to) of all layers, in pieces of different sizes; commit() is the caller's.
void archive_append(restkv_archive & archive, uint32_t from, uint32_t to, uint32_t generation);

// Whether [from, to) are read back as these rows, from a cache in the archive's type.
bool archive_holds(const restkv_archive & archive, uint32_t from, uint32_t to, uint32_t generation);

// What a call throws; RESTKV_OK when nothing. The sentence is in `said`.
template <typename F>
restkv_status archive_status(const F & call, std::string * said = nullptr) {
    try {
        call();
    } catch (const restkv_error & e) {
        if (said) {
            *said = e.what();
        }
        return e.status;
    }
    return RESTKV_OK;
}

// Bytes of a file, past every lock.
std::vector<uint8_t> archive_bytes(const std::string & path, uint64_t offset, size_t n);
void                 archive_overwrite(const std::string & path, uint64_t offset, const std::vector<uint8_t> & bytes);
