#include "tests/archive.h"

#include "archive/check.h"
#include "stages/parallel.h"
#include "tests/numbers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#ifndef _WIN32
#    include <unistd.h>
#endif

std::string archive_path(const std::string & name) {
#ifdef _WIN32
    const std::string process = "x";
#else
    const std::string process = std::to_string(getpid());
#endif
    const std::filesystem::path folder = std::filesystem::temp_directory_path() / ("restkv-archive-" + process);
    std::filesystem::create_directories(folder);
    std::filesystem::remove(folder / name);
    return (folder / name).string();
}

std::vector<restkv_archive_layer> archive_layers(ggml_type first, ggml_type second) {
    return {
        { first,  second, first,  second, 2, 32, 64 },
        { second, first,  second, first,  3, 64, 96 }
    };
}

std::vector<uint8_t> archive_row(const restkv_archive_layer & layer, uint32_t l, bool value, uint32_t position,
                                 uint32_t generation) {
    const ggml_type      type  = value ? layer.cache_v : layer.cache_k;
    const int64_t        width = (int64_t) layer.n_head_kv * (value ? layer.d_v : layer.d_k);
    std::vector<uint8_t> row(ggml_row_size(type, width));
    uint32_t             x = (((generation * 2 + value) * 8 + l) * 4096 + position) * 2654435761u;
    for (uint8_t & byte : row) {
        x    = x * 1664525u + 1013904223u;
        byte = (uint8_t) (x >> 24);
    }
    return row;
}

static void append_piece(restkv_archive & archive, uint32_t l, uint32_t from, uint32_t to, uint32_t generation) {
    std::vector<uint8_t> rows[2];
    for (const bool value : { false, true }) {
        for (uint32_t p = from; p < to; ++p) {
            const std::vector<uint8_t> row = archive_row(archive.layer(l), l, value, p, generation);
            rows[value].insert(rows[value].end(), row.begin(), row.end());
        }
    }
    archive.append(l, from, to - from, rows[0].data(), rows[1].data());
}

void archive_append(restkv_archive & archive, uint32_t from, uint32_t to, uint32_t generation) {
    for (uint32_t l = 0; l < archive.n_layer(); ++l) {
        uint32_t at = from;
        do {
            const uint32_t end = std::min(to, at + 1 + (at * 7 + l * 13) % 90);
            append_piece(archive, l, at, end, generation);
            at = end;
        } while (at < to);
    }
}

bool archive_holds(const restkv_archive & archive, uint32_t from, uint32_t to, uint32_t generation) {
    std::vector<uint8_t> buffer;
    bool                 right = true;
    for (uint32_t l = 0; l < archive.n_layer(); ++l) {
        for (const bool value : { false, true }) {
            const size_t    bytes = value ? archive.row_v(l) : archive.row_k(l);
            const uint8_t * rows =
                value ? archive.values(l, from, to - from, buffer) : archive.keys(l, from, to - from, buffer);
            for (uint32_t p = from; p < to; ++p) {
                const std::vector<uint8_t> row = archive_row(archive.layer(l), l, value, p, generation);
                right = right && row.size() == bytes && memcmp(row.data(), rows + (p - from) * bytes, bytes) == 0;
            }
        }
    }
    return right;
}

std::vector<uint8_t> archive_bytes(const std::string & path, uint64_t offset, size_t n) {
    std::vector<uint8_t> bytes(n);
    std::ifstream        file(path, std::ios::binary);
    file.seekg((std::streamoff) offset);
    file.read((char *) bytes.data(), (std::streamsize) n);
    bytes.resize((size_t) file.gcount());
    return bytes;
}

void archive_overwrite(const std::string & path, uint64_t offset, const std::vector<uint8_t> & bytes) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp((std::streamoff) offset);
    file.write((const char *) bytes.data(), (std::streamsize) bytes.size());
    CHECK(file.good());
}

// Every type, bit for bit; what is not committed is not there.
static void test_round_trip(int32_t place, ggml_type first, ggml_type second) {
    const std::string path    = archive_path("round-trip");
    const auto        archive = restkv_archive::make(place, path, 300, archive_layers(first, second));
    uint32_t          end     = 0;
    for (const uint32_t n : { 1u, 62u, 1u, 1u, 130u, 5u, 100u }) {  // 63, 64, 65, ... 300
        archive_append(*archive, end, end + n, 9);
        CHECK(archive->n_rows() == end);
        archive_append(*archive, end, end + n, 1);  // the round begins anew
        archive->commit(end + n);
        end += n;
        CHECK(archive->n_rows() == end);
        CHECK(archive_holds(*archive, 0, end, 1));
    }
    for (int i = 0; i < 20; ++i) {
        const uint32_t from = rng() % 301, n = rng() % (301 - from);
        CHECK(archive_holds(*archive, from, from + n, 1));
    }
    uint64_t rows = 0, once = 0;
    for (uint32_t l = 0; l < archive->n_layer(); ++l) {
        rows += 300 * (archive->row_k(l) + archive->row_v(l));
        once += archive->row_k(l) + archive->row_v(l);
    }
    CHECK(archive->bytes_written() == 2 * rows);
    CHECK(archive->bytes() >= rows && archive->bytes() < rows + 16 * 4096);
    const uint64_t       before = archive->bytes_read();
    std::vector<uint8_t> buffer;
    for (uint32_t l = 0; l < archive->n_layer(); ++l) {
        archive->keys(l, 64, 64, buffer);
        archive->values(l, 64, 64, buffer);
    }
    CHECK(archive->bytes_read() - before == 64 * once);
}

// Rows of a cache in f16, kept in q8_0: near, and the same in memory and in a file.
static void test_conversion(ggml_type cache, ggml_type type, double tolerance) {
    const uint32_t                          d = 64, n_head = 2, n = 70, width = d * n_head;
    const std::vector<restkv_archive_layer> layers = {
        { cache, cache, type, type, n_head, d, d }
    };
    std::vector<uint8_t> rows(ggml_row_size(cache, (int64_t) n * width));
    std::vector<float>   exact = normal((size_t) n * width), back(exact.size());
    if (cache == GGML_TYPE_F32) {
        memcpy(rows.data(), exact.data(), rows.size());
    } else {
        ggml_get_type_traits(cache)->from_float_ref(exact.data(), rows.data(), n * width);
        ggml_get_type_traits(cache)->to_float(rows.data(), exact.data(), n * width);
    }
    const auto ram  = restkv_archive::make(RESTKV_PLACE_RAM, "", 100, layers);
    const auto file = restkv_archive::make(RESTKV_PLACE_FILE, archive_path("conversion"), 100, layers);
    for (restkv_archive * archive : { ram.get(), file.get() }) {
        archive->append(0, 0, 3, rows.data(), rows.data());
        const uint8_t * rest = rows.data() + ggml_row_size(cache, 3 * width);
        archive->append(0, 3, n - 3, rest, rest);
        archive->commit(n);
    }
    std::vector<uint8_t> buffers[3];
    const uint8_t *      k = ram->keys(0, 0, n, buffers[0]);
    CHECK(memcmp(k, file->keys(0, 0, n, buffers[1]), n * ram->row_k(0)) == 0);
    CHECK(memcmp(k, file->values(0, 0, n, buffers[2]), n * ram->row_k(0)) == 0);
    ggml_get_type_traits(type)->to_float(k, back.data(), n * width);
    bool near = true;
    for (size_t i = 0; i < exact.size(); i += 32) {
        float most = 0.0f;
        for (size_t j = i; j < i + 32; ++j) {
            most = std::max(most, std::fabs(exact[j]));
        }
        for (size_t j = i; j < i + 32; ++j) {
            near = near && std::fabs(back[j] - exact[j]) <= tolerance * most;
        }
    }
    CHECK(near);
}

static void test_cut(int32_t place, uint32_t n, uint32_t cut) {
    const std::string path    = archive_path("cut");
    auto              archive = restkv_archive::make(place, path, 300, archive_layers());
    archive_append(*archive, 0, n, 1);
    archive->commit(n);
    archive_append(*archive, n, n + 20, 9);  // and an open round
    archive->truncate(cut);
    CHECK(archive->n_rows() == cut && archive_holds(*archive, 0, cut, 1));
    std::vector<uint8_t> buffer;
    CHECK(archive_status([&] { archive->keys(0, cut, 1, buffer); }) == RESTKV_INVALID);
    CHECK(archive_status([&] { archive->commit(n + 20); }) == RESTKV_INVALID);
    CHECK(archive_status([&] { archive->truncate(cut + 1); }) == RESTKV_INVALID);
    archive_append(*archive, cut, cut + 75, 2);
    archive->commit(cut + 75);
    CHECK(archive_holds(*archive, 0, cut, 1) && archive_holds(*archive, cut, cut + 75, 2));
    archive.reset();
    if (place == RESTKV_PLACE_FILE) {
        const restkv_archive_found found = restkv_archive_check(path);
        CHECK(found.n_rows == cut + 75 && found.n_written == cut + 75 && found.why.empty());
        CHECK(found.n_ctx == 300 && found.layers.size() == 2 && found.layers[1].d_v == 96);
    }
}

static void test_refusals() {
    const auto make = [](const restkv_archive_layer & layer, uint32_t n_ctx = 64) {
        const std::string path = archive_path("refused");
        const auto        file = [&] { restkv_archive::make(RESTKV_PLACE_FILE, path, n_ctx, { layer }); };
        const auto        ram  = [&] { restkv_archive::make(RESTKV_PLACE_RAM, "", n_ctx, { layer }); };
        std::string       said;
        const auto        status = archive_status(ram, &said);
        CHECK(archive_status(file) == status || status == RESTKV_NO_MEMORY);
        CHECK(status == RESTKV_OK || !std::filesystem::exists(path));
        CHECK((status == RESTKV_OK) == said.empty());
        return status;
    };
    const ggml_type f16 = GGML_TYPE_F16, q8 = GGML_TYPE_Q8_0, q4 = GGML_TYPE_Q4_0;
    CHECK(make({ f16, f16, f16, f16, 1, 64, 64 }) == RESTKV_OK);
    CHECK(make({ q8, f16, q4, q8, 1, 64, 64 }) == RESTKV_OK);
    CHECK(make({ f16, f16, f16, q4, 1, 64, 64 }) == RESTKV_INVALID);            // not rotated
    CHECK(make({ f16, f16, GGML_TYPE_Q5_0, f16, 1, 64, 64 }) == RESTKV_INVALID);
    CHECK(make({ f16, f16, q8, f16, 1, 48, 64 }) == RESTKV_INVALID);            // no whole blocks
    CHECK(make({ GGML_TYPE_I32, f16, q8, f16, 1, 64, 64 }) == RESTKV_INVALID);  // not read as floats
    CHECK(make({ GGML_TYPE_COUNT, f16, f16, f16, 1, 64, 64 }) == RESTKV_INVALID);
    CHECK(make({ f16, f16, f16, f16, 0, 64, 64 }) == RESTKV_INVALID);
    CHECK(make({ f16, f16, f16, f16, 1, 0, 64 }) == RESTKV_INVALID);
    CHECK(make({ f16, f16, f16, f16, 4000000000u, 4000000000u, 64 }) == RESTKV_INVALID);
    CHECK(make({ f16, f16, f16, f16, 1, 64, 64 }, 0) == RESTKV_INVALID);
    // 8 PiB of address space
    const restkv_archive_layer large = { f16, f16, f16, f16, 512, 1024, 1024 };
    CHECK(archive_status([&] { restkv_archive::make(RESTKV_PLACE_RAM, "", UINT32_MAX, { large }); }) ==
          RESTKV_NO_MEMORY);
    CHECK(archive_status([&] {
              restkv_archive::make(RESTKV_PLACE_FILE, archive_path("refused"), UINT32_MAX,
                                   std::vector<restkv_archive_layer>(4096, large));
          }) == RESTKV_INVALID);
    CHECK(archive_status([&] { restkv_archive::make(RESTKV_PLACE_RAM, "", 64, {}); }) == RESTKV_INVALID);
    CHECK(archive_status([&] { restkv_archive::make(RESTKV_PLACE_FILE, "", 64, { large }); }) == RESTKV_INVALID);
    CHECK(archive_status([&] { restkv_archive::make(RESTKV_PLACE_NONE, "", 64, { large }); }) == RESTKV_INVALID);

    for (const int32_t place : { RESTKV_PLACE_RAM, RESTKV_PLACE_FILE }) {
        const auto           archive = restkv_archive::make(place, archive_path("order"), 70, archive_layers());
        std::vector<uint8_t> rows(1 << 16), buffer;
        const auto           append = [&](uint32_t l, uint32_t first, uint32_t n) {
            return archive_status([&] { archive->append(l, first, n, rows.data(), rows.data()); });
        };
        CHECK(append(2, 0, 1) == RESTKV_INVALID);
        CHECK(append(0, 1, 1) == RESTKV_INVALID);
        CHECK(append(0, 0, 71) == RESTKV_INVALID);
        CHECK(append(0, UINT32_MAX, 2) == RESTKV_INVALID);
        CHECK(append(0, 0, 0) == RESTKV_OK);
        CHECK(append(0, 0, 70) == RESTKV_OK);
        CHECK(append(0, 70, 1) == RESTKV_INVALID);
        CHECK(append(1, 0, 69) == RESTKV_OK);
        for (const uint32_t n : { 69u, 70u }) {
            CHECK(archive_status([&] { archive->commit(n); }) == RESTKV_INVALID);
        }
        CHECK(append(1, 69, 1) == RESTKV_OK);
        archive->commit(70);
        CHECK(archive_status([&] { archive->keys(0, 70, 1, buffer); }) == RESTKV_INVALID);
        CHECK(archive_status([&] { archive->values(0, 2, UINT32_MAX, buffer); }) == RESTKV_INVALID);
        CHECK(archive_status([&] { archive->values(2, 0, 1, buffer); }) == RESTKV_INVALID);
    }
}

// What lies in host memory follows the rows, not the context; a file needs next to none.
static void test_memory_of_the_host() {
    const std::vector<restkv_archive_layer> layers = {
        8, { GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_F16, 8, 128, 128 }
    };
    const uint32_t n_ctx = 131072;
    const auto     ram   = restkv_archive::make(RESTKV_PLACE_RAM, "", n_ctx, layers);
    const auto     file  = restkv_archive::make(RESTKV_PLACE_FILE, archive_path("host"), n_ctx, layers);
    const uint64_t all   = (uint64_t) n_ctx * 8 * 8 * 256 * 2;
    CHECK(ram->bytes() == all && ram->bytes_host() < 1 << 20);
    archive_append(*ram, 0, 100, 1);
    archive_append(*file, 0, 100, 1);
    const uint64_t some = all / n_ctx * 100;
    CHECK(ram->bytes_host() >= some && ram->bytes_host() < some + (1 << 20));
    CHECK(file->bytes() >= all && file->bytes_host() < 1 << 20);
}

// Readers on many threads, beside an append.
static void test_threads(int32_t place) {
    const auto archive = restkv_archive::make(place, archive_path("threads"), 300, archive_layers());
    archive_append(*archive, 0, 150, 1);
    archive->commit(150);
    std::atomic<uint32_t> n_right{ 0 };
    restkv_parallel(9, 4, [&](uint32_t task, uint32_t) {
        if (task == 0) {
            archive_append(*archive, 150, 300, 2);
        } else {
            n_right += archive_holds(*archive, task * 10, 150, 1);
        }
    });
    CHECK(n_right == 8);
    archive->commit(300);
    CHECK(archive_holds(*archive, 0, 150, 1) && archive_holds(*archive, 150, 300, 2));
}

void restkv_test_archive() {
    test_refusals();
    test_memory_of_the_host();
    for (const int32_t place : { RESTKV_PLACE_RAM, RESTKV_PLACE_FILE }) {
        test_round_trip(place, GGML_TYPE_F16, GGML_TYPE_Q8_0);
        test_round_trip(place, GGML_TYPE_BF16, GGML_TYPE_Q4_0);
        test_round_trip(place, GGML_TYPE_F32, GGML_TYPE_F32);
        test_threads(place);
        for (const uint32_t n : { 64u, 65u, 200u }) {
            for (const uint32_t cut : { 0u, 1u, 63u, 64u, n - 1, n }) {
                test_cut(place, n, cut);
            }
        }
    }
    // Half a step of the type, and what its scale loses.
    test_conversion(GGML_TYPE_F16, GGML_TYPE_Q8_0, 0.5 / 127 + 1e-3);
    test_conversion(GGML_TYPE_BF16, GGML_TYPE_Q8_0, 0.5 / 127 + 1e-3);
    test_conversion(GGML_TYPE_F32, GGML_TYPE_Q8_0, 0.5 / 127 + 1e-3);
    test_conversion(GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, 1.0 / 8 + 1e-3);
    restkv_test_archive_damage();
    std::filesystem::remove_all(std::filesystem::path(archive_path("x")).parent_path());
}
