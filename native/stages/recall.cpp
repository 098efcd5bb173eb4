#include "stages/recall.h"

#include "stages/panel.h"
#include "stages/stages.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// A panel of 256 KiB as floats, in whole blocks of the archive.
uint32_t restkv_recall_panel(uint32_t d_k) {
    constexpr uint32_t FLOATS = 1u << 16;
    constexpr uint32_t BLOCK  = 64;
    return std::max(BLOCK, FLOATS / std::max(1u, d_k) / BLOCK * BLOCK);
}

static uint32_t heads_at_a_time(uint32_t n_head, uint32_t n_head_kv, size_t n_pad, uint32_t n_query) {
    const size_t one = (size_t) (n_head / n_head_kv) * n_query * n_pad * sizeof(float);
    return (uint32_t) std::clamp<size_t>(restkv_recall_work::LOGITS_MAX / std::max<size_t>(one, 1), 1, n_head_kv);
}

void restkv_recall_work::reserve(const restkv_recall_params & params, uint32_t n_head, uint32_t n_head_kv, uint32_t d_k,
                                 uint32_t n_ctx, uint32_t n_own, bool attends) {
    const size_t rows   = (size_t) n_head * params.n_rows;
    const size_t panels = n_ctx / restkv_recall_panel(d_k) + 1;
    const size_t all    = panels + n_own / restkv_recall_panel(d_k) + 1;
    const size_t one    = rows / n_head_kv * restkv_pad(n_ctx);  // logits of a KV head
    n_most              = std::max<size_t>(n_most, n_ctx);
    queries.reserve(rows * d_k);
    pos.reserve(rows);
    raw.reserve((size_t) n_head_kv * n_ctx);
    scores.reserve((size_t) n_head_kv * n_ctx);
    chosen.reserve((size_t) n_head_kv * params.budget);
    if (!attends) {
        return;
    }
    logits.reserve(std::min(std::max(LOGITS_MAX / sizeof(float), one), n_head_kv * one));
    tops.reserve(rows * all);
    sums.reserve(rows * all);
    factors.reserve(rows * panels);
}

// ---- outlying ----------------------------------------------------------------------------------

std::vector<uint32_t> restkv_outlying(const uint8_t * q, size_t q_row, uint32_t n, uint32_t d, uint32_t n_rows) {
    std::vector<uint32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    if (n <= n_rows) {
        return order;
    }
    const auto row = [&](uint32_t i) { return (const float *) (q + i * q_row); };

    std::vector<double> length(n), mean(d, 0.0), cosine(n);
    for (uint32_t i = 0; i < n; ++i) {
        double sum = 0.0;
        for (uint32_t x = 0; x < d; ++x) {
            sum += (double) row(i)[x] * row(i)[x];
        }
        length[i] = std::sqrt(sum);
        for (uint32_t x = 0; x < d && length[i] > 0.0; ++x) {
            mean[x] += row(i)[x] / length[i];
        }
    }
    for (uint32_t i = 0; i < n; ++i) {
        double sum = 0.0;
        for (uint32_t x = 0; x < d && length[i] > 0.0; ++x) {
            sum += row(i)[x] / length[i] * (mean[x] / n);
        }
        cosine[i] = std::isfinite(sum) ? sum : 0.0;
    }
    std::nth_element(order.begin(), order.begin() + n_rows, order.end(),
                     [&](uint32_t a, uint32_t b) { return cosine[a] != cosine[b] ? cosine[a] < cosine[b] : a < b; });
    order.resize(n_rows);
    std::sort(order.begin(), order.end());
    return order;
}

void restkv_recall_work::pick_queries(const restkv_recall_view & view, uint32_t head) {
    const uint8_t * q    = view.q + head * view.q_head;
    size_t          slot = (size_t) head * n_query;
    for (const uint32_t i : restkv_outlying(q, view.q_row, view.n_queries, view.d_k, n_query)) {
        const float * from = (const float *) (q + i * view.q_row);
        float *       to   = queries.data() + slot * view.d_k;
        for (uint32_t x = 0; x < view.d_k; ++x) {
            to[x] = from[x] * view.scale;
        }
        pos[slot++] = view.row_pos[i];
    }
}

// ---- attend ------------------------------------------------------------------------------------

void restkv_recall_work::prepare(const restkv_recall_view & view, const restkv_recall_params & params,
                                 uint32_t n_threads, bool attends) {
    n_query  = std::min(params.n_rows, view.n_queries);
    n_cells  = restkv_recall_panel(view.d_k);
    n_panels = (view.n + n_cells - 1) / n_cells;
    n_all    = n_panels + (view.n_own + n_cells - 1) / n_cells;
    n_pad    = restkv_pad(view.n);
    n_heads  = heads_at_a_time(view.n_head, view.n_head_kv, n_pad, n_query);
    n_chosen = std::min(params.budget, view.n);

    const size_t rows = (size_t) view.n_head * n_query;
    queries.resize(rows * view.d_k);
    pos.resize(rows);
    raw.resize((size_t) view.n_head_kv * view.n);
    scores.resize((size_t) view.n_head_kv * view.n);
    chosen.resize((size_t) view.n_head_kv * n_chosen);
    threads.resize(std::max<size_t>(threads.size(), n_threads));
    for (own_thread & own : threads) {
        own.order.reserve(n_most);
    }
    if (!attends) {
        return;
    }
    logits.resize(n_heads * view.group() * n_query * n_pad);
    tops.resize(rows * n_all);
    sums.resize(rows * n_all);
    factors.resize(rows * n_panels);
    for (own_thread & own : threads) {
        own.panel.resize((size_t) view.d_k * n_cells);
        own.row.resize(std::max(view.d_k, n_cells));
        own.logits.resize((size_t) view.group() * n_query * n_cells);
    }
}

// Logits of a head group's queries over n rows from position pos_first on, and what their softmax is made of.
void restkv_recall_work::attend_rows(const restkv_recall_view & view, uint32_t panel, uint32_t head_kv,
                                     int64_t pos_first, uint32_t n, float * z_all, size_t ld) {
    const restkv_kernels * kernels = restkv_cpu_kernels();
    for (uint32_t r = 0; r < view.group() * n_query; ++r) {
        const size_t   row       = (size_t) head_kv * view.group() * n_query + r;
        float *        z         = z_all + r * ld;
        const uint32_t n_visible = (uint32_t) std::clamp<int64_t>((int64_t) pos[row] - pos_first + 1, 0, n);
        std::fill(z + n_visible, z + n, 0.0f);
        tops[row * n_all + panel] = -INFINITY;
        sums[row * n_all + panel] = 0.0;
        if (n_visible == 0) {
            continue;
        }
        restkv_drop_non_finite(z, n_visible);
        if (view.softcap > 0.0f) {
            kernels->softcap(z, n_visible, view.softcap);
        }
        const uint32_t top        = kernels->argmax(z, n_visible);
        const float    max        = z[top];
        tops[row * n_all + panel] = max;
        const double rest         = kernels->exp_sum(z, n_visible, max, top);
        sums[row * n_all + panel] = rest + z[top];
    }
}

void restkv_recall_work::attend_panel(const restkv_recall_view & view, uint32_t panel, uint32_t head_first,
                                      uint32_t head_end, own_thread & own) {
    const restkv_kernels * kernels = restkv_cpu_kernels();
    const bool             behind  = panel >= n_panels;
    const uint32_t         from    = (behind ? panel - n_panels : panel) * n_cells;
    const uint32_t         n       = std::min(n_cells, (behind ? view.n_own : view.n) - from);
    const ggml_type        type    = behind ? view.own_type : view.type;
    const size_t           head    = ggml_row_size(type, view.d_k);
    const size_t           stride  = behind ? view.own_row : head * view.n_head_kv;
    const uint8_t *        keys    = behind ? view.own + from * stride : view.keys(from, n, own.buffer);
    const uint32_t         n_row   = view.group() * n_query;
    for (uint32_t h = head_first; h < head_end; ++h) {
        restkv_load_panel(keys + h * head, stride, type, n, view.d_k, own.panel.data(), n_cells, own.row.data());
        float *      z  = behind ? own.logits.data() : logits.data() + (h - head_first) * n_row * n_pad + from;
        const size_t ld = behind ? n_cells : n_pad;
        kernels->matmul(queries.data() + (size_t) h * n_row * view.d_k, n_row, view.d_k, own.panel.data(), n_cells, n,
                        z, ld);
        attend_rows(view, panel, h, (behind ? (int64_t) view.n : 0) + from, n, z, ld);
    }
}

// The softmax of a row over everything: what brings the parts of its panels to one scale.
void restkv_recall_work::weigh_row(const restkv_recall_view & view, uint32_t row) {
    const float * top  = tops.data() + (size_t) row * n_all;
    const float   sink = view.attn_sinks ? view.attn_sinks[row / n_query] : -INFINITY;
    const float   max  = std::max(sink, *std::max_element(top, top + n_all));
    double        sum  = std::exp((double) sink - max);
    for (uint32_t p = 0; p < n_all; ++p) {
        sum += sums[(size_t) row * n_all + p] * std::exp((double) top[p] - max);
    }
    for (uint32_t p = 0; p < n_panels; ++p) {
        // a row that sees nothing has no attention
        factors[(size_t) row * n_panels + p] = max > -INFINITY ? (float) (std::exp((double) top[p] - max) / sum) : 0.0f;
    }
}

// The largest attention of a query head's rows, and the mean of that over the heads of a group.
void restkv_recall_work::score_panel(const restkv_recall_view & view, uint32_t panel, uint32_t head_first,
                                     uint32_t head_end, own_thread & own) {
    const uint32_t from  = panel * n_cells;
    const uint32_t n     = std::min(n_cells, view.n - from);
    const uint32_t group = view.group();
    float *        best  = own.row.data();
    for (uint32_t h = head_first; h < head_end; ++h) {
        float * out = raw.data() + (size_t) h * view.n + from;
        std::fill(out, out + n, 0.0f);
        for (uint32_t g = 0; g < group; ++g) {
            std::fill(best, best + n, 0.0f);
            for (uint32_t i = 0; i < n_query; ++i) {
                const size_t  own_row = (size_t) g * n_query + i;
                const float   factor  = factors[((size_t) h * group * n_query + own_row) * n_panels + panel];
                const float * e       = logits.data() + ((h - head_first) * group * n_query + own_row) * n_pad + from;
                for (uint32_t j = 0; j < n; ++j) {
                    const float a = factor * e[j];
                    best[j]       = a > best[j] ? a : best[j];
                }
            }
            for (uint32_t j = 0; j < n; ++j) {
                out[j] += best[j];
            }
        }
        for (uint32_t j = 0; j < n; ++j) {
            out[j] /= (float) group;
        }
    }
}

// ---- average and choose ------------------------------------------------------------------------

void restkv_average(const float * x, uint32_t n, uint32_t kernel, float * y) {
    const int64_t r = kernel / 2;
    std::fill(y, y + n, 0.0f);
    for (int64_t o = -r; o <= r; ++o) {
        const int64_t first = std::max<int64_t>(0, -o);
        const int64_t end   = std::min<int64_t>(n, (int64_t) n - o);
        for (int64_t p = first; p < end; ++p) {
            y[p] += x[p + o];
        }
    }
    for (int64_t p = 0; p < (int64_t) n; ++p) {
        y[p] /= (float) (std::min<int64_t>(p + r, (int64_t) n - 1) - std::max<int64_t>(p - r, 0) + 1);
    }
}

void restkv_recall_work::choose(const restkv_recall_view & view, const restkv_recall_params & params, uint32_t head_kv,
                                own_thread & own) {
    const uint32_t n = view.n;
    float *        y = scores.data() + (size_t) head_kv * n;
    int32_t *      c = chosen.data() + (size_t) head_kv * n_chosen;
    restkv_average(raw.data() + (size_t) head_kv * n, n, params.kernel, y);
    if (n <= params.budget) {
        std::iota(c, c + n, 0);
        return;
    }
    const uint32_t n_middle = n - params.sinks - params.window;
    const uint32_t n_best   = params.budget - params.sinks - params.window;
    own.order.resize(n_middle);
    restkv_select_top(y + params.sinks, n_middle, n_best, own.order.data());
    std::iota(c, c + params.sinks, 0);
    for (uint32_t i = 0; i < n_best; ++i) {
        c[params.sinks + i] = own.order[i] + (int32_t) params.sinks;
    }
    std::iota(c + params.sinks + n_best, c + n_chosen, (int32_t) (n - params.window));
}

// ---- all of it ---------------------------------------------------------------------------------

void restkv_recall_work::attend(const restkv_recall_view & view, restkv_member & member) {
    // every thread comes to every part, also when prepare() has failed
    for (uint32_t h0 = 0; h0 < view.n_head_kv; h0 += std::max(n_heads, 1u)) {
        const uint32_t h1 = std::min(h0 + n_heads, view.n_head_kv);
        member.run([&] {
            for (uint32_t p = member.i; p < n_all; p += member.n) {
                attend_panel(view, p, h0, h1, threads[member.i]);
            }
        });
        member.run([&] {
            const uint32_t rows = view.group() * n_query;
            for (uint32_t r = h0 * rows + member.i; r < h1 * rows; r += member.n) {
                weigh_row(view, r);
            }
        });
        member.run([&] {
            for (uint32_t p = member.i; p < n_panels; p += member.n) {
                score_panel(view, p, h0, h1, threads[member.i]);
            }
        });
    }
}

void restkv_recall_work::run(const restkv_recall_view & view, const restkv_recall_params & params,
                             restkv_member & member, restkv_recall_attends * device) {
    member.run_first([&] { prepare(view, params, member.n, !device); });
    member.run([&] {
        for (uint32_t h = member.i; h < view.n_head; h += member.n) {
            pick_queries(view, h);
        }
    });
    if (device) {
        device->attend(view, queries.data(), pos.data(), n_query, raw.data(), member);
    } else {
        attend(view, member);
    }
    member.run([&] {
        for (uint32_t h = member.i; h < view.n_head_kv; h += member.n) {
            choose(view, params, h, threads[member.i]);
        }
    });
}
