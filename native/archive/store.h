// The archive of a cache: every row of K and V by its position, in host memory or in a file. It knows ggml's types, and no
// cache of llama.cpp.
//
// One thread appends, commits and cuts. Reads may come from many threads, each with a buffer of its own, also beside
// append(), but not beside commit() or truncate().

#pragma once

#include "ggml.h"
#include "restkv.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

// A row holds the n_head_kv heads of a position one after the other, d_k or d_v values each.
struct restkv_archive_layer {
    ggml_type cache_k, cache_v;  // of the rows that are appended
    ggml_type type_k, type_v;  // of the rows that are kept: the cache's, Q8_0, or Q4_0 where the cache is quantized too
    uint32_t  n_head_kv, d_k, d_v;
};

// All failures are restkv_error: RESTKV_INVALID for arguments, RESTKV_NO_MEMORY, and RESTKV_ARCHIVE for what a file does.
class restkv_archive {
public:
    static constexpr uint32_t BLOCK = 64;  // positions that one checksum covers; a file is read in whole blocks

    // place: RESTKV_PLACE_RAM or RESTKV_PLACE_FILE. path: the file, made anew and never one that is something else.
    static std::unique_ptr<restkv_archive> make(int32_t place, const std::string & path, uint32_t n_ctx,
                                                std::vector<restkv_archive_layer> layers);

    virtual ~restkv_archive() = default;

    restkv_archive(const restkv_archive &)             = delete;
    restkv_archive & operator=(const restkv_archive &) = delete;

    // Positions [0, n) are there, in every layer.
    uint32_t n_rows() const { return n_rows_; }

    // n rows of layer l for the positions from `first`: n_rows(), which starts a round of this layer anew, or the end of
    // its last append in this round. k: [n][n_head_kv][d_k] of the type cache_k, v alike; NULL only when n is 0. Until
    // commit() nothing can be read of them, and a failure leaves n_rows() and what lies before it as they were.
    // kept: the rows are of the archive's own types.
    virtual void append(uint32_t l, uint32_t first, uint32_t n, const uint8_t * k, const uint8_t * v,
                        bool kept = false) = 0;

    // Ends a round: every layer was appended up to n_rows. A failure leaves the old n_rows().
    virtual void commit(uint32_t n_rows) = 0;

    // Positions from n_rows on are dropped; what is not committed is, even when this fails, and nothing else then. A file
    // reads the block that is cut, and refuses where that is damaged; a cut at a multiple of BLOCK reads nothing.
    virtual void truncate(uint32_t n_rows) = 0;

    // Rows [from, from + n) of layer l, in the archive's type: a pointer into the archive's memory, or into `buffer`, which
    // grows as needed. Rows of a file are compared with their checksums before anything of them is returned.
    virtual const uint8_t * keys(uint32_t l, uint32_t from, uint32_t n, std::vector<uint8_t> & buffer) const   = 0;
    virtual const uint8_t * values(uint32_t l, uint32_t from, uint32_t n, std::vector<uint8_t> & buffer) const = 0;

    const restkv_archive_layer & layer(uint32_t l) const { return layers_[l]; }

    uint32_t n_layer() const { return (uint32_t) layers_.size(); }

    uint32_t n_ctx() const { return n_ctx_; }

    // Bytes of a row, all heads.
    size_t row_k(uint32_t l) const { return row_k_[l]; }

    size_t row_v(uint32_t l) const { return row_v_[l]; }

    uint64_t bytes() const { return bytes_; }  // that it can grow to, where it lies

    // In host memory now: the rows written so far, or the checksums and buffers of a file.
    virtual uint64_t bytes_host() const = 0;

    uint64_t bytes_written() const { return bytes_written_; }  // rows only

    uint64_t bytes_read() const { return bytes_read_; }

protected:
    restkv_archive(uint32_t n_ctx, std::vector<restkv_archive_layer> layers);

    void check_append(uint32_t l, uint32_t first, uint32_t n) const;
    void check_commit(uint32_t n_rows) const;
    void check_read(uint32_t l, uint32_t from, uint32_t n) const;
    void check_cut(uint32_t n_rows) const;
    void settle(uint32_t n_rows);  // n_rows() is this now, and no round is open

    // n rows of a layer's keys or values as the archive keeps them, at dst; returns the bytes of src.
    size_t convert(uint32_t l, bool value, uint32_t n, const uint8_t * src, uint8_t * dst);
    bool   same_type(uint32_t l, bool value) const;

    size_t row(uint32_t l, bool value) const { return value ? row_v_[l] : row_k_[l]; }

    const uint32_t                          n_ctx_;
    const std::vector<restkv_archive_layer> layers_;

    std::vector<size_t>           row_k_, row_v_;
    std::vector<uint32_t>         end_;     // per layer, of its rows in the open round
    std::vector<float>            floats_;  // a row on its way from one type to another
    uint64_t                      bytes_         = 0;
    uint64_t                      bytes_written_ = 0;
    mutable std::atomic<uint64_t> bytes_read_{ 0 };

private:
    uint32_t n_rows_ = 0;
};
