// An archive in host memory. Address space for all of it is taken at once; the system finds memory for a page when it is
// written first.

#include "api/status.h"
#include "archive/kinds.h"
#include "archive/layer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#ifndef _WIN32
#    include <sys/mman.h>
#endif

namespace {

class pages {
public:
    explicit pages(uint64_t n) : n_(n) {
        if (n <= SIZE_MAX) {
#ifdef _WIN32
            data_ = (uint8_t *) malloc((size_t) n);
#else
            int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#    ifdef MAP_NORESERVE
            flags |= MAP_NORESERVE;
#    endif
            void * p = mmap(nullptr, (size_t) n, PROT_READ | PROT_WRITE, flags, -1, 0);
            data_    = p == MAP_FAILED ? nullptr : (uint8_t *) p;
#endif
        }
        if (!data_) {
            throw restkv_error(RESTKV_NO_MEMORY,
                               "an archive of " + std::to_string(n >> 20) +
                                   " MiB per layer does not fit in memory: use a file or a smaller n_ctx");
        }
    }

    pages(pages && other) noexcept : data_(other.data_), n_(other.n_) { other.data_ = nullptr; }

    pages(const pages &) = delete;

    ~pages() {
        if (data_) {
#ifdef _WIN32
            free(data_);
#else
            munmap(data_, (size_t) n_);
#endif
        }
    }

    uint8_t * data() const { return data_; }

private:
    uint8_t * data_ = nullptr;
    uint64_t  n_    = 0;
};

class archive_ram : public restkv_archive {
public:
    archive_ram(uint32_t n_ctx, std::vector<restkv_archive_layer> layers) : restkv_archive(n_ctx, std::move(layers)) {
        written_.assign(n_layer(), 0);
        for (uint32_t l = 0; l < n_layer(); ++l) {
            // values begin at a page's start, as keys do
            const uint64_t k = restkv_archive_times(n_ctx, row_k(l));
            const uint64_t v = restkv_archive_times(n_ctx, row_v(l));
            values_.push_back((restkv_archive_plus(k, 4095)) / 4096 * 4096);
            layers_data_.emplace_back(restkv_archive_plus(values_[l], v));
            bytes_ = restkv_archive_plus(bytes_, restkv_archive_plus(k, v));
        }
    }

    void append(uint32_t l, uint32_t first, uint32_t n, const uint8_t * k, const uint8_t * v, bool kept) override {
        check_append(l, first, n);
        for (const bool value : { false, true }) {
            uint8_t *       dst = at(l, first, value);
            const uint8_t * src = value ? v : k;
            if (kept || same_type(l, value)) {
                if (n > 0) {
                    memcpy(dst, src, n * row(l, value));
                }
            } else {
                convert(l, value, n, src, dst);
            }
            bytes_written_ += n * (uint64_t) row(l, value);
        }
        end_[l]     = first + n;
        written_[l] = std::max(written_[l], end_[l]);
    }

    void commit(uint32_t n_rows) override {
        check_commit(n_rows);
        settle(n_rows);
    }

    void truncate(uint32_t n_rows) override {
        check_cut(n_rows);
        settle(n_rows);
    }

    const uint8_t * keys(uint32_t l, uint32_t from, uint32_t n, std::vector<uint8_t> &) const override {
        return read(l, from, n, false);
    }

    const uint8_t * values(uint32_t l, uint32_t from, uint32_t n, std::vector<uint8_t> &) const override {
        return read(l, from, n, true);
    }

    uint64_t bytes_host() const override {
        uint64_t n = floats_.size() * sizeof(float);
        for (uint32_t l = 0; l < n_layer(); ++l) {
            n += written_[l] * ((uint64_t) row_k(l) + row_v(l));
        }
        return n;
    }

private:
    uint8_t * at(uint32_t l, uint32_t position, bool value) const {
        return layers_data_[l].data() + (value ? values_[l] : 0) + position * (uint64_t) row(l, value);
    }

    const uint8_t * read(uint32_t l, uint32_t from, uint32_t n, bool value) const {
        check_read(l, from, n);
        bytes_read_ += n * (uint64_t) row(l, value);
        return at(l, from, value);
    }

    std::vector<pages>    layers_data_;
    std::vector<uint64_t> values_;   // where a layer's values begin
    std::vector<uint32_t> written_;  // most rows that a layer has ever held: their pages are there
};

}  // namespace

std::unique_ptr<restkv_archive> restkv_make_archive_ram(uint32_t n_ctx, std::vector<restkv_archive_layer> layers) {
    return std::make_unique<archive_ram>(n_ctx, std::move(layers));
}
