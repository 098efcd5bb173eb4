#include "archive/format.h"

#include "api/status.h"
#include "archive/layer.h"
#include "model/hash.h"

#include <cstring>

namespace {

constexpr char     MAGIC[8] = { 'r', 'k', 'v', 'a', 'r', 'c', 'h', '\n' };
constexpr uint32_t VERSION  = 1;
constexpr uint64_t SEED     = 0x243F6A8885A308D3ull;
constexpr uint64_t PAGE     = 4096;

struct header {
    char     magic[8];
    uint32_t version;  // another one too on a machine of the other byte order
    uint32_t block;
    uint32_t n_ctx;
    uint32_t n_layer;
    uint64_t total;
    uint64_t hash;  // of the header with 0 here, and of the layers
};

struct layer_entry {
    int32_t  cache_k, cache_v, type_k, type_v;
    uint32_t n_head_kv, d_k, d_v, zero;
};

struct record {
    uint64_t hash;  // of all behind it
    uint64_t number;
    uint32_t n_rows;
    uint32_t slot;
};

static_assert(sizeof(header) == 40 && sizeof(layer_entry) == 32 && sizeof(record) == 24, "written as they are");

uint64_t hash_header(header head, const std::vector<layer_entry> & entries) {
    head.hash = 0;
    return restkv_hash(entries.data(), entries.size() * sizeof(layer_entry), restkv_hash(&head, sizeof(head), SEED));
}

[[noreturn]] void refuse(const std::string & why) {
    throw restkv_error(RESTKV_ARCHIVE, why);
}

}  // namespace

restkv_archive_format::restkv_archive_format(uint32_t n_ctx, std::vector<restkv_archive_layer> made) :
    n_ctx(n_ctx),
    layers(std::move(made)) {
    total           = 0;
    const auto take = [&](uint64_t n) {
        const uint64_t begin = total;
        total                = restkv_archive_plus(total, restkv_archive_plus(n, PAGE - 1) / PAGE * PAGE);
        return begin;
    };
    take(sizeof(header) + layers.size() * sizeof(layer_entry));
    for (uint64_t & commit : commits) {
        commit = take(restkv_commit_bytes(*this));
    }
    const uint64_t n_blocks = ((uint64_t) n_ctx + restkv_archive::BLOCK - 1) / restkv_archive::BLOCK;
    sums                    = take(restkv_archive_times(n_blocks, n_sums() * sizeof(uint64_t)));
    for (uint32_t l = 0; l < layers.size(); ++l) {
        keys.push_back(take(restkv_archive_times(n_ctx, row(l, false))));
        values.push_back(take(restkv_archive_times(n_ctx, row(l, true))));
    }
}

size_t restkv_archive_format::row(uint32_t l, bool value) const {
    return restkv_archive_row(layers[l], value);
}

size_t restkv_commit_bytes(const restkv_archive_format & format) {
    return sizeof(record) + format.n_sums() * sizeof(uint64_t);
}

bool restkv_is_archive(const restkv_file & file) {
    char magic[sizeof(MAGIC)];
    if (file.size() < sizeof(magic)) {
        return false;
    }
    file.read(0, magic, sizeof(magic));
    return memcmp(magic, MAGIC, sizeof(magic)) == 0;
}

void restkv_write_header(restkv_file & file, const restkv_archive_format & format) {
    std::vector<layer_entry> entries;
    for (const restkv_archive_layer & l : format.layers) {
        entries.push_back({ l.cache_k, l.cache_v, l.type_k, l.type_v, l.n_head_kv, l.d_k, l.d_v, 0 });
    }
    header head = {};
    memcpy(head.magic, MAGIC, sizeof(MAGIC));
    head.version = VERSION;
    head.block   = restkv_archive::BLOCK;
    head.n_ctx   = format.n_ctx;
    head.n_layer = (uint32_t) entries.size();
    head.total   = format.total;
    head.hash    = hash_header(head, entries);
    // One write: a file that begins as an archive has all of this.
    std::vector<uint8_t> bytes(sizeof(head) + entries.size() * sizeof(layer_entry));
    memcpy(bytes.data(), &head, sizeof(head));
    memcpy(bytes.data() + sizeof(head), entries.data(), entries.size() * sizeof(layer_entry));
    file.write(0, bytes.data(), bytes.size());
}

restkv_archive_format restkv_read_header(const restkv_file & file) {
    const uint64_t size = file.size();
    header         head;
    if (!restkv_is_archive(file)) {
        refuse("it is not an archive");
    }
    if (size < sizeof(head)) {
        refuse("it ends in its header");
    }
    file.read(0, &head, sizeof(head));
    if (head.version != VERSION || head.block != restkv_archive::BLOCK) {
        refuse("it was written by another version");
    }
    // Bounded before anything is made of it.
    if (head.n_ctx == 0 || head.n_layer == 0 || head.n_layer > RESTKV_ARCHIVE_LAYER_MAX) {
        refuse("its header is damaged");
    }
    std::vector<layer_entry> entries(head.n_layer);
    const size_t             n_bytes = entries.size() * sizeof(layer_entry);
    if (size < sizeof(head) + n_bytes) {
        refuse("it ends in its header");
    }
    file.read(sizeof(head), entries.data(), n_bytes);
    if (head.hash != hash_header(head, entries)) {
        refuse("its header is damaged");
    }
    std::vector<restkv_archive_layer> layers;
    for (const layer_entry & e : entries) {
        for (const int32_t type : { e.cache_k, e.cache_v, e.type_k, e.type_v }) {
            if (type < 0 || type >= GGML_TYPE_COUNT) {
                refuse("its header is damaged");
            }
        }
        layers.push_back({ (ggml_type) e.cache_k, (ggml_type) e.cache_v, (ggml_type) e.type_k, (ggml_type) e.type_v,
                           e.n_head_kv, e.d_k, e.d_v });
        restkv_check_archive_layer(layers.back());
    }
    restkv_archive_format format(head.n_ctx, std::move(layers));
    if (format.total != head.total) {
        refuse("its header is damaged");
    }
    if (size != format.total) {
        refuse("it is " + std::to_string(size) + " bytes long and should be " + std::to_string(format.total));
    }
    return format;
}

void restkv_write_commit(restkv_file & file, const restkv_archive_format & format, uint64_t number, uint32_t n_rows,
                         const std::vector<uint64_t> & sums, std::vector<uint8_t> & scratch) {
    const uint32_t slot = number % 2;
    record         head = { 0, number, n_rows, slot };
    scratch.resize(restkv_commit_bytes(format));
    memcpy(scratch.data(), &head, sizeof(head));
    memcpy(scratch.data() + sizeof(head), sums.data(), format.n_sums() * sizeof(uint64_t));
    head.hash = restkv_hash(scratch.data() + sizeof(head.hash), scratch.size() - sizeof(head.hash), SEED);
    memcpy(scratch.data(), &head.hash, sizeof(head.hash));
    file.write(format.commits[slot], scratch.data(), scratch.size());
}

restkv_archive_commit restkv_read_commit(const restkv_file & file, const restkv_archive_format & format,
                                         bool & damaged) {
    restkv_archive_commit best;
    std::vector<uint8_t>  bytes(restkv_commit_bytes(format));
    damaged = false;
    for (uint32_t slot = 0; slot < 2; ++slot) {
        file.read(format.commits[slot], bytes.data(), bytes.size());
        record head;
        memcpy(&head, bytes.data(), sizeof(head));
        const uint64_t hash = restkv_hash(bytes.data() + sizeof(head.hash), bytes.size() - sizeof(head.hash), SEED);
        if (head.hash != hash || head.number == 0 || head.slot != slot || head.number % 2 != slot ||
            head.n_rows > format.n_ctx) {
            for (const uint8_t byte : bytes) {
                damaged = damaged || byte != 0;
            }
        } else if (head.number > best.number) {
            best.number = head.number;
            best.n_rows = head.n_rows;
            best.sums.resize(format.n_sums());
            memcpy(best.sums.data(), bytes.data() + sizeof(head), format.n_sums() * sizeof(uint64_t));
        }
    }
    return best;
}

uint64_t restkv_block_seed(uint32_t block, uint32_t l, bool value) {
    const uint32_t name[3] = { block, l, value };
    return restkv_hash(name, sizeof(name), SEED);
}

uint64_t restkv_block_sum(uint32_t block, uint32_t l, bool value, const uint8_t * rows, uint32_t n, size_t bytes) {
    uint64_t h = restkv_block_seed(block, l, value);
    for (uint32_t i = 0; i < n; ++i) {
        h = restkv_hash(rows + i * bytes, bytes, h);
    }
    return h;
}
