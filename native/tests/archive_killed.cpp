// A process that is killed while it writes an archive: what its file then holds is what it had committed, or what it was
// about to commit, row for row.

#include "archive/check.h"
#include "archive/format.h"
#include "tests/archive.h"

#include <atomic>
#include <cstring>

#ifdef _WIN32

void restkv_test_archive_killed() {}

#else

#    include <csignal>
#    include <ctime>
#    include <sys/mman.h>
#    include <sys/wait.h>
#    include <unistd.h>

static constexpr uint32_t N_CTX = 200;

// Of every position the generation of its rows.
struct contents {
    uint32_t n;
    uint8_t  generation[N_CTX];
};

// Of the child, seen by its parent.
struct shared {
    contents              before, after;  // the commit that is being written
    std::atomic<uint32_t> n_steps;        // that are done
};

static shared *          seen;
static restkv_file_calls usual;
static int32_t           n_left;  // writes until the process is killed
static int32_t           how;     // 0: before the write, 1: half of it is done, 2: all of it is

static int64_t write_and_die(int fd, const void * data, size_t n, uint64_t offset) {
    if (n_left-- > 0) {
        return usual.write(fd, data, n, offset);
    }
    usual.write(fd, data, how == 0 ? 0 : how == 1 ? n / 2 : n, offset);
    raise(SIGKILL);
    return -1;
}

static void begin(uint32_t n, uint32_t from, uint8_t generation) {
    seen->before  = seen->after;
    seen->after.n = n;
    for (uint32_t p = from; p < n; ++p) {
        seen->after.generation[p] = generation;
    }
}

static void end() {
    seen->before = seen->after;
    seen->n_steps++;
}

static void add(restkv_archive & archive, uint32_t n, uint8_t generation) {
    const uint32_t from = archive.n_rows();
    begin(from + n, from, generation);
    archive_append(archive, from, from + n, generation);
    archive.commit(from + n);
    end();
}

static void cut(restkv_archive & archive, uint32_t n) {
    begin(n, n, 0);
    archive.truncate(n);
    end();
}

// Grows and is cut in every way: inside a block, at its end, over several.
static void live(const std::string & path, bool forever) {
    const auto archive = restkv_archive::make(RESTKV_PLACE_FILE, path, N_CTX, archive_layers());
    end();
    uint8_t generation = 1;
    do {
        add(*archive, 20, generation);
        add(*archive, 30, generation);
        add(*archive, 14, generation);  // 64
        add(*archive, 100, generation);
        cut(*archive, 150);
        add(*archive, 10, ++generation);
        cut(*archive, 64);
        add(*archive, 70, ++generation);
        cut(*archive, 30);
        add(*archive, 100, ++generation);
        cut(*archive, 0);
        generation = generation % 200 + 1;
    } while (forever);
}

static bool holds(const std::string & path, const restkv_archive_found & found, const contents & what) {
    if (found.n_rows != what.n) {
        return false;
    }
    const restkv_archive_format format(found.n_ctx, found.layers);
    for (uint32_t p = 0; p < what.n; ++p) {
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t             l     = i / 2;
            const bool                 value = i % 2;
            const std::vector<uint8_t> want  = archive_row(found.layers[l], l, value, p, what.generation[p]);
            if (archive_bytes(path, format.at(l, value, p), want.size()) != want) {
                return false;
            }
        }
    }
    return true;
}

// half: the last write may have been half of a record, which is said.
static void look(const std::string & path, bool half) {
    const restkv_archive_found found = restkv_archive_check(path);
    if (seen->n_steps == 0) {
        CHECK(found.n_rows == 0);
    } else {
        CHECK(found.why.empty() || half);
        CHECK(holds(path, found, seen->before) || holds(path, found, seen->after));
    }
}

// Runs a child, and returns whether it was killed.
template <typename F>
static bool run(const F & body) {
    memset((void *) seen, 0, sizeof(*seen));
    const pid_t child = fork();
    if (child == 0) {
        body();
        _exit(0);
    }
    int status = 0;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

// At every write, before it, in its middle and behind it.
static void test_every_write(const std::string & path) {
    usual = restkv_file_system;
    for (how = 0; how < 3; ++how) {
        int32_t n = 0;
        while (run([&] {
            restkv_file_system.write = write_and_die;
            n_left                   = n;
            live(path, false);
        })) {
            look(path, how == 1);
            n++;
        }
        CHECK(n > 60);
        CHECK(seen->n_steps == 12);
        look(path, false);
    }
}

// At any moment: so many steps, and then a little later.
static void test_any_moment(const std::string & path) {
    for (uint32_t i = 0; i < 20; ++i) {
        memset((void *) seen, 0, sizeof(*seen));
        const pid_t child = fork();
        if (child == 0) {
            live(path, true);
            _exit(1);
        }
        const timespec pause = { 0, 100000 }, later = { 0, (long) (i * i % 11) * 30000 };
        for (uint32_t wait = 0; wait < 100000 && seen->n_steps < i; ++wait) {
            nanosleep(&pause, nullptr);
        }
        nanosleep(&later, nullptr);
        int status = 0;
        CHECK(child > 0 && kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        CHECK(seen->n_steps >= i);
        look(path, true);
    }
}

void restkv_test_archive_killed() {
    void * memory = mmap(nullptr, sizeof(shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    seen                   = (shared *) memory;
    const std::string path = archive_path("killed");
    test_every_write(path);
    test_any_moment(path);
    munmap(memory, sizeof(shared));
}

#endif
