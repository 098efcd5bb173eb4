// Shapes of graphs that have had their place in the memory of an allocator. One of a new shape may make the allocator move
// that memory, which must not happen under a graph that still runs.

#pragma once

#include "ggml.h"

#include <cstdint>
#include <unordered_set>

class restkv_shapes {
public:
    bool is_new(ggml_cgraph * gf) {
        constexpr size_t SHAPES_MAX = 4096;

        uint64_t   hash = 14695981039346656037u;  // FNV-1a, by words
        const auto add  = [&](uint64_t x) { hash = (hash ^ x) * 1099511628211u; };
        for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
            const ggml_tensor * node = ggml_graph_node(gf, i);
            add(node->op);
            for (const int64_t n : node->ne) {
                add((uint64_t) n);
            }
        }
        if (seen.size() >= SHAPES_MAX) {
            seen.clear();
        }
        return seen.insert(hash).second;
    }

private:
    std::unordered_set<uint64_t> seen;
};
