// A method scores the past cells of one KV head: high means keep.
// To add one: a file beside this one and a row in methods.cpp.

#pragma once

#include "../stages.h"

struct restkv_method {
    const char * name;
    const char * summary;

    bool uses_queries;  // needs the window's queries (else no ring is kept)
    bool uses_wo;       // may need W_o
    bool pools;         // its scores are smoothed

    // raw: scratch.raw, [group][scratch.n_pad], the first view.n_past of each row
    void (*score)(const restkv_view & view, const restkv_params & params, uint32_t drift_top, restkv_scratch & scratch);
};

extern const restkv_method restkv_method_restkv;
extern const restkv_method restkv_method_snapkv;
extern const restkv_method restkv_method_streamingllm;
extern const restkv_method restkv_method_random;

// Null when there is no such method.
const restkv_method * restkv_find_method(const char * name);

// ---- of restkv, for every way to run it ----------------------------------------------------------

// distance^tau, where tau acts.
float restkv_distance_power(double distance, const restkv_params & params);

// The score of a cell that takes most of the attention. a: its weight; rest: 1 - a, exact; others: [d] weighted sum of
// all other values; v: [d] its value; wo: [d][d] upper factor or null; x: [d] of scratch.
float restkv_score_top(double a, double rest, const double * others, const float * v, const float * wo, uint32_t d,
                       const restkv_params & params, std::vector<double> & x);
