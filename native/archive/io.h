// A file that is read and written whole, at 64-bit offsets, by one process at a time.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

// All failures are restkv_error with RESTKV_ARCHIVE: what the system said, and what to do.
class restkv_file {
public:
    // For writing; a file that is not there is made, with mode 0600. Nobody else may have it open.
    static restkv_file open(const std::string & path);
    // For reading; nobody may be writing it.
    static restkv_file open_read(const std::string & path);

    restkv_file(restkv_file && other) noexcept;
    ~restkv_file();

    restkv_file(const restkv_file &)             = delete;
    restkv_file & operator=(const restkv_file &) = delete;
    restkv_file & operator=(restkv_file &&)      = delete;

    bool made() const { return made_; }  // open() found none

    // Nobody else may read it from now on, where the system knows such a thing; another user's file is refused.
    void keep_private();

    uint64_t size() const;
    void resize(uint64_t n);  // bytes that were not there read as zeros, and take no room where the system can do that

    // All n bytes. Reads may come from many threads.
    void read(uint64_t offset, void * data, size_t n) const;
    void write(uint64_t offset, const void * data, size_t n);

    void remove() noexcept;  // the name; the file goes when it is closed

private:
    restkv_file(int fd, const std::string & path, bool made) : fd_(fd), path_(path), made_(made) {}

    int         fd_;
    std::string path_;
    bool        made_;
};

// What the system does for one call: bytes that it read or wrote, fewer than asked for too; -1 with errno. Tests put their
// own in their place.
struct restkv_file_calls {
    int64_t (*read)(int fd, void * data, size_t n, uint64_t offset);
    int64_t (*write)(int fd, const void * data, size_t n, uint64_t offset);
};

extern restkv_file_calls restkv_file_system;
