// An archive in a file. Checksums lie in memory too; rows are read when they are asked for.

#include "api/status.h"
#include "archive/format.h"
#include "archive/kinds.h"
#include "model/hash.h"

#include <algorithm>

namespace {

// The file, held by nobody else, with no rows in it.
restkv_file make_file(const std::string & path, const restkv_archive_format & format) {
    if (path.empty()) {
        throw restkv_error(RESTKV_INVALID, "an archive in a file needs a path");
    }
    restkv_file file = restkv_file::open(path);
    if (!file.made() && file.size() > 0 && !restkv_is_archive(file)) {
        throw restkv_error(RESTKV_ARCHIVE, path + " is not an archive and is left as it is: name another file");
    }
    try {
        file.keep_private();
        // The header first: a file whose maker is killed here can be made anew.
        file.resize(0);
        restkv_write_header(file, format);
        file.resize(format.total);
        std::vector<uint8_t> record;
        restkv_write_commit(file, format, 1, 0, std::vector<uint64_t>(format.n_sums()), record);
    } catch (...) {
        if (file.made()) {
            file.remove();
        }
        throw;
    }
    return file;
}

std::vector<uint64_t> reserved(size_t n) {
    std::vector<uint64_t> sums;
    sums.reserve(n);
    return sums;
}

size_t longest_row(const restkv_archive_format & format) {
    size_t most = 0;
    for (uint32_t l = 0; l < format.layers.size(); ++l) {
        most = std::max(most, std::max(format.row(l, false), format.row(l, true)));
    }
    return most;
}

// All memory is taken when it is made, before the file: rows can be saved when there is none left.
class archive_file : public restkv_archive {
public:
    archive_file(const std::string & path, restkv_archive_format format) :
        restkv_archive(format.n_ctx, format.layers),
        path_(path),
        format_(std::move(format)),
        sums_(reserved(((size_t) format_.n_ctx / BLOCK + 1) * format_.n_sums())),
        tail_(format_.n_sums()),
        next_(format_.n_sums()),
        rows_(longest_row(format_) * BLOCK),
        record_(restkv_commit_bytes(format_)),
        file_(make_file(path, format_)) {
        bytes_ = format_.total;
    }

    void append(uint32_t l, uint32_t first, uint32_t n, const uint8_t * k, const uint8_t * v, bool kept) override {
        check_append(l, first, n);
        sums_.resize(std::max(sums_.size(), ((size_t) first + n) / BLOCK * format_.n_sums()));
        uint64_t sums[2];
        for (const bool value : { false, true }) {
            sums[value] = (first == n_rows() ? tail_ : next_)[2 * l + value];
            write_rows(l, value, first, n, value ? v : k, kept || same_type(l, value), sums[value]);
        }
        next_[2 * l]     = sums[0];
        next_[2 * l + 1] = sums[1];
        end_[l]          = first + n;
    }

    void commit(uint32_t n_rows) override {
        check_commit(n_rows);
        if (n_rows == this->n_rows()) {
            return;
        }
        // The record before this one needs none of these: its last block was not finished.
        const size_t from = this->n_rows() / BLOCK, to = n_rows / BLOCK;
        file_.write(format_.at_sums(from), sums_.data() + from * format_.n_sums(),
                    (to - from) * format_.n_sums() * sizeof(uint64_t));
        restkv_write_commit(file_, format_, number_ + 1, n_rows, next_, record_);
        number_++;
        std::copy(next_.begin(), next_.end(), tail_.begin());
        settle(n_rows);
    }

    void truncate(uint32_t n_rows) override {
        check_cut(n_rows);
        settle(this->n_rows());  // an open round ends here: next_ is free
        if (n_rows < this->n_rows()) {
            const uint32_t block = n_rows / BLOCK, n = n_rows % BLOCK;
            const uint32_t end = std::min((uint64_t) this->n_rows(), ((uint64_t) block + 1) * BLOCK);
            for (uint32_t i = 0; i < format_.n_sums() && n > 0; ++i) {
                const uint32_t l     = i / 2;
                const bool     value = i % 2;
                file_.read(format_.at(l, value, block * BLOCK), rows_.data(), (end - block * BLOCK) * row(l, value));
                verify(l, value, block * BLOCK, end, rows_.data());
                next_[i] = restkv_block_sum(block, l, value, rows_.data(), n, row(l, value));
            }
            restkv_write_commit(file_, format_, number_ + 1, n_rows, next_, record_);
            number_++;
            std::copy(next_.begin(), next_.end(), tail_.begin());
            settle(n_rows);
        }
    }

    const uint8_t * keys(uint32_t l, uint32_t from, uint32_t n, std::vector<uint8_t> & buffer) const override {
        return read(l, false, from, n, buffer);
    }

    const uint8_t * values(uint32_t l, uint32_t from, uint32_t n, std::vector<uint8_t> & buffer) const override {
        return read(l, true, from, n, buffer);
    }

    uint64_t bytes_host() const override {
        return rows_.size() + record_.size() + floats_.size() * sizeof(float) +
               (sums_.size() + tail_.size() + next_.size()) * sizeof(uint64_t);
    }

private:
    // h: the checksum of the block of `first`, and afterwards of the block of the last row.
    void write_rows(uint32_t l, bool value, uint32_t first, uint32_t n, const uint8_t * src, bool kept, uint64_t & h) {
        const size_t bytes = row(l, value);
        while (n > 0) {
            uint32_t        m    = n;
            const uint8_t * rows = src;
            if (!kept) {
                m = std::min(n, BLOCK);
                src += convert(l, value, m, src, rows_.data());
                rows = rows_.data();
            }
            file_.write(format_.at(l, value, first), rows, m * bytes);
            for (uint32_t i = 0; i < m; ++i) {
                const uint32_t position = first + i, block = position / BLOCK;
                if (position % BLOCK == 0) {
                    h = restkv_block_seed(block, l, value);
                }
                h = restkv_hash(rows + i * bytes, bytes, h);
                if (position % BLOCK == BLOCK - 1) {
                    sums_[block * format_.n_sums() + 2 * l + value] = h;
                }
            }
            bytes_written_ += m * (uint64_t) bytes;
            first += m;
            n -= m;
        }
    }

    // Rows [begin, end), whole blocks but for the last one of the archive.
    void verify(uint32_t l, bool value, uint32_t begin, uint32_t end, const uint8_t * rows) const {
        const size_t bytes = row(l, value);
        for (uint32_t at = begin; at < end; at += std::min(BLOCK, end - at)) {
            const uint32_t block = at / BLOCK, n = std::min(BLOCK, end - at);
            const size_t   i    = 2 * l + value;
            const uint64_t want = n == BLOCK ? sums_[block * format_.n_sums() + i] : tail_[i];
            if (restkv_block_sum(block, l, value, rows + (at - begin) * bytes, n, bytes) != want) {
                throw restkv_error(RESTKV_ARCHIVE, "the archive " + path_ + " is damaged in layer " +
                                                       std::to_string(l) + ", positions " + std::to_string(at) +
                                                       " to " + std::to_string(at + n - 1) +
                                                       ": start again with a new one, and read the text again");
            }
        }
    }

    const uint8_t * read(uint32_t l, bool value, uint32_t from, uint32_t n, std::vector<uint8_t> & buffer) const {
        check_read(l, from, n);
        if (n == 0) {
            return buffer.data();
        }
        const uint32_t begin = from / BLOCK * BLOCK;
        const uint32_t end   = std::min((uint64_t) n_rows(), ((uint64_t) from + n + BLOCK - 1) / BLOCK * BLOCK);
        const size_t   bytes = (end - begin) * row(l, value);
        if (buffer.size() < bytes) {
            buffer.resize(bytes);
        }
        file_.read(format_.at(l, value, begin), buffer.data(), bytes);
        bytes_read_ += bytes;
        verify(l, value, begin, end, buffer.data());
        return buffer.data() + (from - begin) * row(l, value);
    }

    const std::string           path_;
    const restkv_archive_format format_;
    uint64_t                    number_ = 1;  // of the last commit
    std::vector<uint64_t>       sums_;        // of finished blocks, those of the open round too
    std::vector<uint64_t>       tail_;        // of the block that the last commit left unfinished
    std::vector<uint64_t>       next_;        // the same for the open round
    std::vector<uint8_t>        rows_;        // a block, on its way
    std::vector<uint8_t>        record_;
    restkv_file                 file_;
};

}  // namespace

std::unique_ptr<restkv_archive> restkv_make_archive_file(const std::string & path, uint32_t n_ctx,
                                                         std::vector<restkv_archive_layer> layers) {
    return std::make_unique<archive_file>(path, restkv_archive_format(n_ctx, std::move(layers)));
}
