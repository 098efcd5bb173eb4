#include "cache/sequence.h"

#include <algorithm>

void restkv_sequence::clear() {
    n_table       = 0;
    pos_exact     = 0;
    cursor        = 0;
    lost          = false;
    votes_lost[0] = 0;
    forget_from(0);
    std::fill(ring_pos.begin(), ring_pos.end(), -1);
}

void restkv_sequence::forget_from(llama_pos p0) {
    for (llama_pos & pos : ring_pos) {
        pos = pos >= p0 ? -1 : pos;
    }
    pos_seen = std::min(pos_seen, p0);
    if (p0 < pos_exact) {
        return;
    }
    const uint32_t from = n_table + (uint32_t) (p0 - pos_exact);
    for (restkv_held & layer : layers) {
        for (size_t h = 0; from < capacity && h < layer.held.size() && !layer.sums.empty(); ++h) {
            float * sums = layer.sums.data() + h * capacity;
            std::fill(sums + from, sums + capacity, 0.0f);
        }
    }
}

restkv_sequence::window restkv_sequence::rows(llama_pos pos_next, uint32_t n_max, bool pairs) const {
    window          w;
    const llama_pos n = (llama_pos) std::min<size_t>(n_max, ring_pos.size());
    for (llama_pos pos = std::max<llama_pos>(0, pos_next - n); pos < pos_next; ++pos) {
        const uint32_t slot = (uint32_t) pos % (uint32_t) ring_pos.size();
        if (ring_pos[slot] == pos) {
            w.pos.push_back(pos);
            w.slots.push_back((int32_t) slot);
        }
    }
    if (pairs && w.pos.size() % 2) {
        w.pos.erase(w.pos.begin());
        w.slots.erase(w.slots.begin());
    }
    return w;
}
