#include "archive/io.h"

#include "api/status.h"

#include <algorithm>
#include <cerrno>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>

#ifdef _WIN32
#    ifndef NOMINMAX
#        define NOMINMAX
#    endif
#    include <io.h>
#    include <share.h>
#    include <windows.h>
#    include <winioctl.h>
#else
#    include <sys/file.h>
#    include <unistd.h>
#endif

// More than this at once is refused by some systems.
static constexpr size_t CALL_MAX = 1 << 30;

static std::string reason() {
    return std::generic_category().message(errno);
}

[[noreturn]] static void refuse(const std::string & path, const std::string & what) {
    throw restkv_error(RESTKV_ARCHIVE, "the archive " + path + " " + what);
}

[[noreturn]] static void refuse_open(const std::string & path) {
    refuse(path, "cannot be opened (" + reason() + "): name a file in a folder that you may write to");
}

[[noreturn]] static void refuse_use(const std::string & path) {
    refuse(path,
           "is in use, by another process or another cache of this one: name another file, or close that one first");
}

#ifdef _WIN32

static std::wstring wide(const std::string & path) {
    const int    n = MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, nullptr, 0);
    std::wstring out(n > 0 ? n : 1, L'\0');
    MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, &out[0], n);
    return out;
}

static int error_number(DWORD error) {
    return error == ERROR_DISK_FULL || error == ERROR_HANDLE_DISK_FULL ? ENOSPC : EIO;
}

// A file on Windows has one position for all threads; these calls bring their own.
static int64_t system_call(bool write, int fd, void * data, size_t n, uint64_t offset) {
    OVERLAPPED at = {};
    DWORD      done;
    at.Offset           = (DWORD) offset;
    at.OffsetHigh       = (DWORD) (offset >> 32);
    const HANDLE handle = (HANDLE) _get_osfhandle(fd);
    if (write ? WriteFile(handle, data, (DWORD) n, &done, &at) : ReadFile(handle, data, (DWORD) n, &done, &at)) {
        return done;
    }
    const DWORD error = GetLastError();
    if (error == ERROR_HANDLE_EOF) {
        return 0;
    }
    errno = error_number(error);
    return -1;
}

static int64_t system_read(int fd, void * data, size_t n, uint64_t offset) {
    return system_call(false, fd, data, n, offset);
}

static int64_t system_write(int fd, const void * data, size_t n, uint64_t offset) {
    return system_call(true, fd, (void *) data, n, offset);
}

// Nobody else opens it: that is the lock.
static int open_alone(const std::string & path, int flags) {
    int fd = -1;
    errno  = _wsopen_s(&fd, wide(path).c_str(), flags | _O_BINARY | _O_NOINHERIT, _SH_DENYRW, _S_IREAD | _S_IWRITE);
    unsigned long error = 0;
    _get_doserrno(&error);
    if (fd < 0 && error == ERROR_SHARING_VIOLATION) {
        refuse_use(path);
    }
    return fd;
}

restkv_file restkv_file::open(const std::string & path) {
    int        fd   = open_alone(path, _O_RDWR | _O_CREAT | _O_EXCL);
    const bool made = fd >= 0;
    if (!made && errno == EEXIST) {
        fd = open_alone(path, _O_RDWR);
    }
    if (fd < 0) {
        refuse_open(path);
    }
    return restkv_file(fd, path, made);
}

restkv_file restkv_file::open_read(const std::string & path) {
    const int fd = open_alone(path, _O_RDONLY);
    if (fd < 0) {
        refuse_open(path);
    }
    return restkv_file(fd, path, false);
}

uint64_t restkv_file::size() const {
    const int64_t n = _filelengthi64(fd_);
    if (n < 0) {
        refuse(path_, "cannot be read (" + reason() + "): name another file");
    }
    return (uint64_t) n;
}

static bool set_size(int fd, uint64_t n) {
    const HANDLE  handle = (HANDLE) _get_osfhandle(fd);
    LARGE_INTEGER end;
    DWORD         done;
    end.QuadPart = (LONGLONG) n;
    // A hole takes no room, where the disk has such.
    DeviceIoControl(handle, FSCTL_SET_SPARSE, nullptr, 0, nullptr, 0, &done, nullptr);
    if (SetFilePointerEx(handle, end, nullptr, FILE_BEGIN) && SetEndOfFile(handle)) {
        return true;
    }
    errno = error_number(GetLastError());
    return false;
}

static void close_file(int fd) {
    _close(fd);
}

void restkv_file::keep_private() {}

void restkv_file::remove() noexcept {
    // An open file cannot be removed here.
    _close(fd_);
    fd_ = -1;
    try {
        _wunlink(wide(path_).c_str());
    } catch (...) {
    }
}

#else

static_assert(sizeof(off_t) == 8, "an archive needs 64-bit offsets");

static int64_t system_read(int fd, void * data, size_t n, uint64_t offset) {
    return pread(fd, data, n, (off_t) offset);
}

static int64_t system_write(int fd, const void * data, size_t n, uint64_t offset) {
    return pwrite(fd, data, n, (off_t) offset);
}

// A pipe or a device would wait, or take everything; the lock goes with the process.
static void check_and_lock(int fd, const std::string & path, int lock) {
    struct stat facts;
    if (fstat(fd, &facts) != 0) {
        refuse_open(path);
    }
    if (!S_ISREG(facts.st_mode)) {
        refuse(path, "is not a file: name one");
    }
    while (flock(fd, lock | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) {
            refuse_use(path);
        }
        if (errno != EINTR) {
            refuse(path, "cannot be locked (" + reason() + "): name a file on a disk of this machine");
        }
    }
}

// Every read asks for all that it needs; what the system reads beyond that only takes memory, which may be short.
static void read_no_further(int fd) {
#    ifdef __APPLE__
    (void) fcntl(fd, F_RDAHEAD, 0);
#    else
    (void) posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
#    endif
}

static int open_file(const std::string & path, int flags) {
    int fd;
    do {
        fd = ::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

restkv_file restkv_file::open(const std::string & path) {
    int        fd   = open_file(path, O_RDWR | O_CREAT | O_EXCL);
    const bool made = fd >= 0;
    if (!made && errno == EEXIST) {
        fd = open_file(path, O_RDWR);
    }
    if (fd < 0) {
        refuse_open(path);
    }
    restkv_file file(fd, path, made);
    try {
        check_and_lock(fd, path, LOCK_EX);
        read_no_further(fd);
    } catch (...) {
        if (made) {
            file.remove();
        }
        throw;
    }
    return file;
}

restkv_file restkv_file::open_read(const std::string & path) {
    const int fd = open_file(path, O_RDONLY);
    if (fd < 0) {
        refuse_open(path);
    }
    restkv_file file(fd, path, false);
    check_and_lock(fd, path, LOCK_SH);
    return file;
}

uint64_t restkv_file::size() const {
    struct stat facts;
    if (fstat(fd_, &facts) != 0) {
        refuse(path_, "cannot be read (" + reason() + "): name another file");
    }
    return (uint64_t) facts.st_size;
}

static bool set_size(int fd, uint64_t n) {
    int status;
    do {
        status = ftruncate(fd, (off_t) n);
    } while (status != 0 && errno == EINTR);
    return status == 0;
}

static void close_file(int fd) {
    ::close(fd);
}

void restkv_file::keep_private() {
    struct stat facts;
    if (fstat(fd_, &facts) != 0 || facts.st_uid != geteuid()) {
        refuse(path_, "belongs to another user: name another file");
    }
    if ((facts.st_mode & 077) != 0) {
        // Disks without modes, as of USB sticks, cannot, and say so or not.
        (void) !fchmod(fd_, 0600);
    }
}

void restkv_file::remove() noexcept {
    unlink(path_.c_str());
}

#endif

restkv_file_calls restkv_file_system = { system_read, system_write };

restkv_file::restkv_file(restkv_file && other) noexcept :
    fd_(other.fd_),
    path_(std::move(other.path_)),
    made_(other.made_) {
    other.fd_ = -1;
}

restkv_file::~restkv_file() {
    if (fd_ >= 0) {
        close_file(fd_);
    }
}

void restkv_file::resize(uint64_t n) {
    if (n > (uint64_t) INT64_MAX || !set_size(fd_, n)) {
        refuse(path_, "cannot be " + std::to_string(n) + " bytes long (" + reason() +
                          "): name a file on another disk, or use a smaller n_ctx");
    }
}

void restkv_file::read(uint64_t offset, void * data, size_t n) const {
    for (uint8_t * p = (uint8_t *) data; n > 0;) {
        const int64_t done = restkv_file_system.read(fd_, p, std::min(n, CALL_MAX), offset);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            refuse(path_, (done < 0 ? "cannot be read (" + reason() + ")" : std::string("ends early")) +
                              ": start again with a new one, and read the text again");
        }
        p += done;
        offset += (uint64_t) done;
        n -= (size_t) done;
    }
}

void restkv_file::write(uint64_t offset, const void * data, size_t n) {
    for (const uint8_t * p = (const uint8_t *) data; n > 0;) {
        const int64_t done = restkv_file_system.write(fd_, p, std::min(n, CALL_MAX), offset);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            errno = done < 0 ? errno : EIO;
            refuse(path_,
                   "cannot be written (" + reason() + "): free room on its disk and try again, or name another file");
        }
        p += done;
        offset += (uint64_t) done;
        n -= (size_t) done;
    }
}
