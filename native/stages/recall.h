// Which positions of all that was read the cells of one layer should hold, for the queries of a guide or of a ubatch:
//
//   outlying -> attend -> average -> choose
//
// Outlying queries after QuoKA (ICLR 2026); the rest is attention as the model has it, over everything. Keys are read a
// panel at a time, so they may lie anywhere. Nothing here knows llama.cpp's cache.

#pragma once

#include "ggml.h"
#include "stages/cpu/kernels.h"
#include "stages/team.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

struct restkv_recall_params {
    uint32_t n_rows;  // queries that speak, per query head
    uint32_t kernel;  // positions that are averaged
    uint32_t sinks;   // first positions that are always chosen
    uint32_t window;  // last positions that are always chosen
    uint32_t budget;  // positions that are chosen
};

// One layer.
struct restkv_recall_view {
    uint32_t      n_head     = 0;
    uint32_t      n_head_kv  = 0;
    uint32_t      d_k        = 0;
    float         scale      = 1.0f;
    float         softcap    = 0.0f;     // 0: none
    const float * attn_sinks = nullptr;  // [n_head] logits of cells without a value, or null

    // Queries after RoPE, floats.
    const uint8_t *      q         = nullptr;
    size_t               q_head    = 0;  // bytes from head to head
    size_t               q_row     = 0;  // bytes from query to query
    uint32_t             n_queries = 0;
    std::vector<int32_t> row_pos;        // [n_queries] ascending: a query sees the rows up to its own position

    // Rows of all KV heads of the positions 0 .. n-1. keys: n rows from `from` on, in memory or in the buffer.
    uint32_t                                                                                 n    = 0;
    ggml_type                                                                                type = GGML_TYPE_F16;
    std::function<const uint8_t *(uint32_t from, uint32_t n, std::vector<uint8_t> & buffer)> keys;

    // Rows behind them, at the positions n ..: seen, and not chosen from.
    const uint8_t * own      = nullptr;
    ggml_type       own_type = GGML_TYPE_F16;
    size_t          own_row  = 0;  // bytes from row to row
    uint32_t        n_own    = 0;

    uint32_t group() const { return n_head / n_head_kv; }
};

// Rows of a panel: a multiple of what a block of the archive has.
uint32_t restkv_recall_panel(uint32_t d_k);

// Attends in place of the threads of the CPU: a device.
class restkv_recall_attends {
public:
    virtual ~restkv_recall_attends() = default;

    // Called by all threads of a team. queries: [n_head][n_query][d_k], scaled, and pos: [n_head][n_query], of those that
    // speak. raw: [n_head_kv][n] the scores before the average. view.own is not read. The team has what failed.
    virtual void attend(const restkv_recall_view & view, const float * queries, const int32_t * pos, uint32_t n_query,
                        float * raw, restkv_member & member) noexcept = 0;
};

// Work memory of recalls, one at a time.
class restkv_recall_work {
public:
    // Logits are kept for as many KV heads at a time as fit these bytes, one at least.
    static constexpr size_t LOGITS_MAX = 16u << 20;

    // Take what layers of this shape can ask for, in texts of n_ctx positions with n_own rows behind them: nothing grows
    // with the text afterwards. attends: here, and not on a device.
    void reserve(const restkv_recall_params & params, uint32_t n_head, uint32_t n_head_kv, uint32_t d_k, uint32_t n_ctx,
                 uint32_t n_own, bool attends);

    // Called by all threads of a team. Afterwards scores and chosen are filled; the team has what failed. device: attends,
    // or null.
    void run(const restkv_recall_view & view, const restkv_recall_params & params, restkv_member & member,
             restkv_recall_attends * device = nullptr);

    std::vector<float>   scores;        // [n_head_kv][n]
    std::vector<int32_t> chosen;        // [n_head_kv][n_chosen] ascending
    uint32_t             n_chosen = 0;  // min(budget, n)

private:
    struct own_thread {
        std::vector<uint8_t> buffer;
        std::vector<float>   panel;   // [d_k][panel cells]
        std::vector<float>   row;     // [max(d_k, panel cells)]
        std::vector<float>   logits;  // [n_rows][panel cells], of the rows behind
        std::vector<int32_t> order;   // [n]
    };

    void prepare(const restkv_recall_view & view, const restkv_recall_params & params, uint32_t n_threads,
                 bool attends);
    void attend(const restkv_recall_view & view, restkv_member & member);
    void pick_queries(const restkv_recall_view & view, uint32_t head);
    void attend_panel(const restkv_recall_view & view, uint32_t panel, uint32_t head_first, uint32_t head_end,
                      own_thread & own);
    void attend_rows(const restkv_recall_view & view, uint32_t panel, uint32_t head_kv, int64_t pos_first, uint32_t n,
                     float * logits, size_t ld);
    void weigh_row(const restkv_recall_view & view, uint32_t row);
    void score_panel(const restkv_recall_view & view, uint32_t panel, uint32_t head_first, uint32_t head_end,
                     own_thread & own);
    void choose(const restkv_recall_view & view, const restkv_recall_params & params, uint32_t head_kv,
                own_thread & own);

    uint32_t n_query  = 0;            // queries that speak, per query head
    uint32_t n_cells  = 0;            // of a panel
    uint32_t n_panels = 0;            // archived ones
    uint32_t n_all    = 0;            // and those of the rows behind
    uint32_t n_heads  = 0;            // KV heads at a time
    size_t   n_pad    = 0;
    size_t   n_most   = 0;            // positions that are reserved for

    std::vector<float>      queries;  // [n_head][n_query][d_k], scaled
    std::vector<int32_t>    pos;      // [n_head][n_query]
    std::vector<float>      logits;   // [n_heads][group * n_query][n_pad]
    std::vector<float>      tops;     // [n_head * n_query][n_all] largest logit of a panel
    std::vector<double>     sums;     // likewise, sum of exp(logit - largest)
    std::vector<float>      factors;  // [n_head * n_query][n_panels] from exp(logit - largest) to attention
    std::vector<float>      raw;      // [n_head_kv][n] scores before the average
    std::vector<own_thread> threads;
};

// The n_rows of n queries that point farthest from the others' mean direction, ascending; ties to the earlier one.
std::vector<uint32_t> restkv_outlying(const uint8_t * q, size_t q_row, uint32_t n, uint32_t d, uint32_t n_rows);

// y[p] = mean of x over the positions within kernel / 2 of p, with true counts at the ends.
void restkv_average(const float * x, uint32_t n, uint32_t kernel, float * y);
