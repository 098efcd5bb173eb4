// W_o enters the scores through one d x d matrix per query head: ||W_h x||^2 = x' G_h x with G_h = W_h' W_h, and with an
// upper factor R_h' R_h = G_h, ||W_h x|| = ||R_h x||. Nothing of size cells x model width is ever made.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

// Upper factors R with R' R = G, by model layer. Layers that were not asked for stay empty.
struct restkv_wo {
    struct layer {
        uint32_t           n_head = 0;
        uint32_t           d      = 0;
        std::vector<float> data;  // [n_head][d][d]
    };

    std::vector<layer> layers;
};

struct restkv_wo_shape {
    uint32_t layer;
    uint32_t n_head;
    uint32_t d;
};

// Reads blk.N.attn_output.weight of the given layers from a GGUF file (the first file of a split model), whatever its
// quantization, and makes the factors on n_threads threads. path_cache: a folder that keeps them, keyed by the bytes of
// the weights, or "". Throws std::runtime_error with a sentence for people.
restkv_wo restkv_read_wo(const std::string & path_model, const std::string & path_cache,
                         const std::vector<restkv_wo_shape> & shapes, uint32_t n_threads);

// G += W' W for one head: W is n_rows rows of `d` values, `stride` floats apart. G: [d][d], lower part left alone.
void restkv_add_gram(const float * w, size_t stride, uint32_t n_rows, uint32_t d, double * gram);

// Upper R with R' R = G; of G [d][d] the upper part is read. Directions that W_o does not see give rows of zeros.
void restkv_factor(const double * gram, uint32_t d, float * upper);

// R -> the factor of H G H for the block-diagonal Hadamard matrix that llama.cpp applies to V when its cache is
// quantized: blocks of n_rot, a divisor of d.
void restkv_rotate_factor(float * upper, uint32_t d, uint32_t n_rot);
