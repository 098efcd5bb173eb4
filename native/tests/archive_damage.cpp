// Files that are damaged, cut short, made to do harm or in use, and disks that are full: noticed, said, and never read as
// if nothing were amiss.

#include "archive/check.h"
#include "archive/format.h"
#include "model/hash.h"
#include "tests/archive.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#ifndef _WIN32
#    include <sys/resource.h>
#    include <sys/stat.h>
#    include <sys/wait.h>
#    include <unistd.h>
#endif

static const restkv_archive_format & format() {
    static const restkv_archive_format made(300, archive_layers());
    return made;
}

static std::unique_ptr<restkv_archive> make(const std::string & path) {
    return restkv_archive::make(RESTKV_PLACE_FILE, path, 300, archive_layers());
}

// 150 rows by two commits: two whole blocks, and 22 rows of a third.
static std::unique_ptr<restkv_archive> make_filled(const std::string & path) {
    auto archive = make(path);
    for (const uint32_t end : { 100u, 150u }) {
        archive_append(*archive, archive->n_rows(), end, 1);
        archive->commit(end);
    }
    return archive;
}

// Where a block of a layer's rows can be damaged: its first byte, one inside, its last one; n of its rows are there.
static std::vector<uint64_t> places(uint32_t l, bool value, uint32_t block, uint32_t n) {
    const uint64_t begin = format().at(l, value, block * restkv_archive::BLOCK);
    const uint64_t bytes = n * (uint64_t) format().row(l, value);
    return { begin, begin + bytes / 3, begin + bytes - 1 };
}

static void flip(const std::string & path, uint64_t offset) {
    std::vector<uint8_t> byte = archive_bytes(path, offset, 1);
    CHECK(byte.size() == 1);
    byte[0] ^= 0x10;
    archive_overwrite(path, offset, byte);
}

// Every block of every layer: its rows are refused, those of other blocks are not; also where a cut reads it.
static void test_rows(const std::string & path) {
    auto                 archive = make_filled(path);
    std::vector<uint8_t> buffer;
    for (uint32_t i = 0; i < 12; ++i) {
        const uint32_t l = i / 6, block = i % 3, n = block < 2 ? 64 : 22;
        const bool     value = i / 3 % 2;
        for (const uint64_t place : places(l, value, block, n)) {
            flip(path, place);
            std::string said;
            const auto  read = [&](uint32_t from, uint32_t rows) {
                return archive_status(
                    [&] { value ? archive->values(l, from, rows, buffer) : archive->keys(l, from, rows, buffer); },
                    &said);
            };
            for (uint32_t other = 0; other < 3; ++other) {
                CHECK(read(other * 64 + 5, 10) == (other == block ? RESTKV_ARCHIVE : RESTKV_OK));
            }
            CHECK(said.find(path) != std::string::npos && said.find("damaged in layer") != std::string::npos);
            CHECK(read(0, 150) == RESTKV_ARCHIVE);
            CHECK(archive_status([&] { archive->truncate(block * 64 + 7); }) == RESTKV_ARCHIVE);
            CHECK(archive->n_rows() == 150);
            flip(path, place);
            archive_append(*archive, 150, 170, 2);  // a cut that fails ends a round, and no more
            if (place % 2) {
                flip(path, place);
                CHECK(archive_status([&] { archive->truncate(block * 64 + 7); }) == RESTKV_ARCHIVE);
                flip(path, place);
                CHECK(archive_status([&] { archive->commit(170); }) == RESTKV_INVALID);
            }
        }
    }
    CHECK(archive_holds(*archive, 0, 150, 1));
    // A block in another's place.
    archive_overwrite(path, format().at(0, false, 64),
                      archive_bytes(path, format().at(0, false, 0), 64 * format().row(0, false)));
    CHECK(archive_status([&] { archive->keys(0, 64, 64, buffer); }) == RESTKV_ARCHIVE);
    archive->truncate(64);
    CHECK(archive_holds(*archive, 0, 64, 1));
    std::filesystem::resize_file(path, format().at(1, true, 30));
    std::string said;
    CHECK(archive_status([&] { archive->values(1, 0, 1, buffer); }, &said) == RESTKV_ARCHIVE);
    CHECK(said.find("ends early") != std::string::npos);
}

// After the process is gone: one byte of each kind.
static void test_check(const std::string & path) {
    make_filled(path).reset();
    const auto look = [&](uint64_t place, uint32_t n_rows) {
        flip(path, place);
        const restkv_archive_found found = restkv_archive_check(path);
        CHECK(found.n_rows == n_rows && !found.why.empty());
        flip(path, place);
    };
    CHECK(restkv_archive_check(path).n_rows == 150 && restkv_archive_check(path).why.empty());
    for (uint64_t place = 0; place < 40 + 2 * 32; ++place) {
        look(place, 0);  // the header, and two layers
    }
    // The third commit, of 150 rows, lies in the second place; the one before it named 100.
    for (uint64_t place = 0; place < restkv_commit_bytes(format()); ++place) {
        look(format().commits[1] + place, 100);
        look(format().commits[0] + place, 150);
    }
    for (uint32_t i = 0; i < 2 * format().n_sums(); ++i) {
        look(format().sums + i * sizeof(uint64_t) + i % 8, i < format().n_sums() ? 0 : 64);
    }
    for (uint32_t i = 0; i < 12; ++i) {
        for (const uint64_t place : places(i / 6, i / 3 % 2, i % 3, i % 3 < 2 ? 64 : 22)) {
            look(place, i % 3 * 64);
        }
    }
    CHECK(restkv_archive_check(path).n_rows == 150 && restkv_archive_check(path).why.empty());
    const uint64_t size = std::filesystem::file_size(path);
    CHECK(size == format().total);
    for (const uint64_t n : { size + 1, size - 1, size / 2, format().sums, (uint64_t) 4096, (uint64_t) 100,
                              (uint64_t) 39, (uint64_t) 8, (uint64_t) 7, (uint64_t) 0 }) {
        std::filesystem::resize_file(path, n);
        const restkv_archive_found found = restkv_archive_check(path);
        CHECK(found.n_rows == 0 && !found.why.empty());
    }
    std::filesystem::remove(path);
    CHECK(restkv_archive_check(path).why.find(path) != std::string::npos);
}

// Numbers that lie, with a header whose own checksum is right.
static void test_hostile(const std::string & path) {
    make_filled(path).reset();
    const std::vector<uint8_t> before = archive_bytes(path, 0, 40 + 2 * 32);
    const auto                 found  = [&](size_t field, std::vector<uint32_t> numbers) {
        std::vector<uint8_t> bytes = before;
        memcpy(bytes.data() + field, numbers.data(), numbers.size() * sizeof(uint32_t));
        memset(bytes.data() + 32, 0, 8);
        uint64_t hash = restkv_hash(bytes.data(), 40, 0x243F6A8885A308D3ull);
        hash          = restkv_hash(bytes.data() + 40, bytes.size() - 40, hash);
        memcpy(bytes.data() + 32, &hash, 8);
        archive_overwrite(path, 0, bytes);
        return restkv_archive_check(path);
    };
    CHECK(found(16, { 300 }).why.empty());  // the checksum is made as theirs is
    for (const uint32_t n_ctx : { 0u, 1u, 200u, 1u << 31, UINT32_MAX }) {
        CHECK(!found(16, { n_ctx }).why.empty());
    }
    for (const uint32_t n_layer : { 0u, 1u, 3u, 4096u, 4097u, UINT32_MAX }) {
        CHECK(!found(20, { n_layer }).why.empty());
    }
    for (const std::vector<uint32_t> & total : {
             std::vector<uint32_t>{ 0,          0          },
             { UINT32_MAX, UINT32_MAX },
             { 0,          1u << 31   }
    }) {
        CHECK(!found(24, total).why.empty());
    }
    for (size_t field = 40; field < 40 + 32 - 4; field += 4) {
        for (const uint32_t x : { 0u, 7u, 4096u, 1u << 20, 1u << 31, (uint32_t) GGML_TYPE_COUNT, UINT32_MAX }) {
            const restkv_archive_found f = found(field, { x });
            // another type of the cache leaves the rows as they are
            CHECK(!f.why.empty() || (field < 48 && f.n_rows == 150));
        }
    }
    // Products that wrap around to something small, and rows without end.
    CHECK(!found(56, { 1u << 31, 1u << 31, 1u << 31 }).why.empty());
    CHECK(!found(56, { 1u << 20, 32, 32 }).why.empty());
}

// A file that is something else stays what it is.
static void test_other_files(const std::string & path) {
    const std::string text = "a letter that somebody wrote";
    std::ofstream(path) << text;
    std::string said;
    CHECK(archive_status([&] { make(path); }, &said) == RESTKV_ARCHIVE);
    CHECK(said.find("is not an archive") != std::string::npos);
    CHECK(archive_bytes(path, 0, 100) == std::vector<uint8_t>(text.begin(), text.end()));
    std::ofstream(path, std::ios::trunc).close();
    CHECK(archive_status([&] { make(path); }) == RESTKV_OK);  // an empty one may be used
    make_filled(path).reset();
    {
        const auto archive = make(path);  // as may one of ours, from its start
        CHECK(archive->n_rows() == 0);
    }
    CHECK(restkv_archive_check(path).n_rows == 0 && restkv_archive_check(path).why.empty());
    CHECK(archive_status([&] { make(path + "/no/such/folder"); }) == RESTKV_ARCHIVE);
    CHECK(archive_status([&] { make(std::filesystem::path(path).parent_path().string()); }) == RESTKV_ARCHIVE);
#ifndef _WIN32
    CHECK(chmod(path.c_str(), 0644) == 0);
    make(path);
    struct stat facts;
    CHECK(stat(path.c_str(), &facts) == 0 && (facts.st_mode & 0777) == 0600);
    CHECK(archive_status([&] { make("/dev/null"); }) == RESTKV_ARCHIVE);
    std::filesystem::remove(path);
    CHECK(mkfifo(path.c_str(), 0600) == 0);
    CHECK(archive_status([&] { make(path); }, &said) == RESTKV_ARCHIVE && !restkv_archive_check(path).why.empty());
    std::filesystem::remove(path);
    make(path);
    CHECK(stat(path.c_str(), &facts) == 0 && (facts.st_mode & 0777) == 0600);
#endif
}

// ---- calls of the system that fail or do less --------------------------------------------------

static restkv_file_calls usual;
static int64_t           n_left;   // bytes until the disk is full
static uint32_t          n_calls;  // so far

static int64_t write_until_full(int fd, const void * data, size_t n, uint64_t offset) {
    if (n_left == 0) {
        errno = ENOSPC;
        return -1;
    }
    const int64_t done = usual.write(fd, data, std::min(n, (size_t) n_left), offset);
    n_left -= std::max<int64_t>(done, 0);
    return done;
}

template <typename F>
static int64_t in_small_steps(size_t n, const F & call) {
    if (n_calls++ % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    return call(std::min(n, (size_t) (n_calls % 7 * 50 + 1)));
}

static int64_t read_in_small_steps(int fd, void * data, size_t n, uint64_t offset) {
    return in_small_steps(n, [&](size_t m) { return usual.read(fd, data, m, offset); });
}

static int64_t write_in_small_steps(int fd, const void * data, size_t n, uint64_t offset) {
    return in_small_steps(n, [&](size_t m) { return usual.write(fd, data, m, offset); });
}

static int64_t read_nothing(int, void *, size_t, uint64_t) {
    errno = EIO;
    return -1;
}

static void test_calls(const std::string & path) {
    usual              = restkv_file_system;
    restkv_file_system = { read_in_small_steps, write_in_small_steps };
    auto archive       = make_filled(path);
    CHECK(archive_holds(*archive, 0, 150, 1) && n_calls > 1000);
    restkv_file_system = { read_nothing, usual.write };
    std::vector<uint8_t> buffer;
    std::string          said;
    CHECK(archive_status([&] { archive->keys(0, 0, 1, buffer); }, &said) == RESTKV_ARCHIVE);
    CHECK(said.find("cannot be read") != std::string::npos);
    CHECK(archive_status([&] { archive->truncate(10); }) == RESTKV_ARCHIVE && archive->n_rows() == 150);

    // Full after so many bytes: in rows, checksums or the record.
    restkv_file_system = { usual.read, write_until_full };
    uint32_t n_failed  = 0;
    for (int64_t bytes = 0; archive->n_rows() == 150; bytes += 733) {
        n_left             = bytes;
        const auto written = archive_status(
            [&] {
                archive_append(*archive, 150, 200, 2);
                archive->commit(200);
            },
            &said);
        CHECK(written == RESTKV_OK || said.find("cannot be written (No space left") != std::string::npos);
        n_failed += written == RESTKV_ARCHIVE;
        CHECK(archive_holds(*archive, 0, 150, 1));
        if (written == RESTKV_OK) {
            CHECK(archive->n_rows() == 200 && archive_holds(*archive, 150, 200, 2));
            CHECK(bytes >= (int64_t) (50 * (format().row(0, false) + format().row(1, true))));
        }
    }
    CHECK(n_failed > 50);
    // A cut writes a record, and can fail too; then the next one does not.
    n_left = 30;
    CHECK(archive_status([&] { archive->truncate(180); }) == RESTKV_ARCHIVE && archive->n_rows() == 200);
    n_left = 1 << 20;
    archive->truncate(180);
    restkv_file_system = usual;
    archive.reset();
    CHECK(restkv_archive_check(path).n_rows == 180 && restkv_archive_check(path).why.empty());

    // Nothing is left of a file that could not be made.
    std::filesystem::remove(path);
    for (n_left = 0; n_left < 160; n_left += 53) {
        const int64_t before = n_left;
        restkv_file_system   = { usual.read, write_until_full };
        CHECK(archive_status([&] { make(path); }) == RESTKV_ARCHIVE && !std::filesystem::exists(path));
        restkv_file_system = usual;
        n_left             = before;
    }
}

#ifndef _WIN32

// The system's own limit: files end here.
static void test_limit(const std::string & path) {
    auto   archive = make_filled(path);
    auto   before  = signal(SIGXFSZ, SIG_IGN);
    rlimit limit, low;
    CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    low          = limit;
    low.rlim_cur = format().at(1, false, 170) + 5;  // in the middle of a row
    CHECK(setrlimit(RLIMIT_FSIZE, &low) == 0);
    std::string said;
    const auto  status = archive_status([&] { archive_append(*archive, 150, 200, 2); }, &said);
    const auto  large  = archive_status([&] { make(path + "-large"); });
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    signal(SIGXFSZ, before);
    CHECK(status == RESTKV_ARCHIVE && said.find("cannot be written") != std::string::npos);
    CHECK(large == RESTKV_ARCHIVE && !std::filesystem::exists(path + "-large"));
    CHECK(archive->n_rows() == 150 && archive_holds(*archive, 0, 150, 1));
    archive_append(*archive, 150, 200, 3);
    archive->commit(200);
    CHECK(archive_holds(*archive, 150, 200, 3));
}

static void test_two(const std::string & path) {
    auto       archive = make_filled(path);
    const auto refused = [&] {
        std::string said;
        return archive_status([&] { make(path); }, &said) == RESTKV_ARCHIVE &&
               said.find("is in use") != std::string::npos;
    };
    CHECK(refused());
    CHECK(restkv_archive_check(path).why.find("is in use") != std::string::npos);
    const pid_t child = fork();
    if (child == 0) {
        _exit(refused() ? 0 : 1);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    CHECK(archive_holds(*archive, 0, 150, 1));
    archive.reset();
    CHECK(restkv_archive_check(path).n_rows == 150);
    CHECK(!refused());
}

#endif

void restkv_test_archive_damage() {
    const std::string path = archive_path("damage");
    test_rows(path);
    test_check(path);
    test_hostile(path);
    test_other_files(path);
    test_calls(path);
#ifndef _WIN32
    test_limit(path);
    test_two(path);
#endif
}
