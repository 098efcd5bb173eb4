// LaCache (Shi et al., 2025): a ladder over the layers. The text after the sinks is cut into rungs; of each rung a layer
// keeps a few consecutive cells, and the next layer those one cell further on. Every pass thins the older part again.
//
// Where the paper drops whole rungs, the last rung of an eviction is shorter here when a whole one would drop too much:
// exactly `budget` cells are left. When one pass is not enough, another begins at the sinks.

#include "methods/methods.h"

#include <algorithm>
#include <numeric>

namespace {

struct ladder {
    uint32_t start;  // first cells that are never dropped
    uint32_t tail;   // last cells, likewise
    uint32_t keep;   // cells that a rung keeps
    uint32_t drop;   // and drops
};

uint32_t div_up(uint32_t a, uint32_t b) {
    return (a + b - 1) / b;
}

uint32_t span_of(const restkv_params & params, uint32_t n_layers) {
    return params.span > 0 ? params.span : std::max(n_layers / 2, 1u);
}

ladder make_ladder(const restkv_params & params, uint32_t n_layers) {
    const uint32_t span = span_of(params, n_layers);
    const uint32_t step = span - params.overlap;
    const uint32_t rung = 1 + div_up(n_layers - span, step);
    const uint32_t keep = std::min(div_up(span, step), rung);
    return { params.sinks, std::max(n_layers, params.window), keep, rung - keep };
}

// Go on from `cursor` until `budget` of the n cells are left. cells: [n] numbers of the cells, ascending; those left
// are moved to its front. Null: only the cursor is wanted, which is the same for every layer. Returns the new cursor.
uint32_t climb(const ladder & l, uint32_t layer, uint32_t n, uint32_t budget, uint32_t cursor, uint32_t * cells) {
    cursor = std::max(cursor, l.start);
    while (n > budget) {
        const uint32_t excess = n - budget;
        const uint32_t room   = budget > (uint64_t) cursor + l.tail ? budget - cursor - l.tail : 0;
        const uint32_t rungs  = std::min(room / l.keep, div_up(excess, l.drop));
        const uint32_t gone   = std::min(excess, rungs * l.drop);
        if (cells) {
            uint32_t out  = cursor;
            uint32_t from = cursor;
            for (uint32_t left = gone; left > 0;) {
                const uint32_t drop  = std::min(left, l.drop);
                const uint32_t first = from + layer % (drop + 1);
                for (uint32_t u = 0; u < l.keep; ++u) {
                    cells[out++] = cells[first + u];
                }
                from += l.keep + drop;
                left -= drop;
            }
            std::copy(cells + from, cells + n, cells + out);
        }
        n -= gone;
        cursor = n > budget ? l.start : cursor + rungs * l.keep;
    }
    return cursor;
}

std::string refuse(const restkv_params & params, uint32_t n_layers) {
    const uint32_t span = span_of(params, n_layers);
    if (n_layers < 2 || params.overlap >= span || span >= n_layers) {
        return "a ladder over " + std::to_string(n_layers) + " layers needs a span below that and an overlap below " +
               "the span; got span " + std::to_string(span) + " and overlap " + std::to_string(params.overlap);
    }
    const ladder l = make_ladder(params, n_layers);
    if (l.drop == 0) {
        return "a ladder of span " + std::to_string(span) + " and overlap " + std::to_string(params.overlap) +
               " over " + std::to_string(n_layers) + " layers drops nothing: lower the overlap";
    }
    const uint64_t least = (uint64_t) l.start + l.tail + l.keep + l.drop;
    if (params.budget < least) {
        return "the ladder needs a budget of at least " + std::to_string(least) + ": sinks, the last " +
               std::to_string(l.tail) + " cells and one rung";
    }
    return "";
}

uint32_t advance(const restkv_params & params, uint32_t n_layers, uint32_t n_cells, uint32_t cursor) {
    return climb(make_ladder(params, n_layers), 0, n_cells, params.budget, cursor, nullptr);
}

void score(const restkv_view & view, const restkv_params & params, uint32_t, restkv_scratch & scratch) {
    const int64_t         t_start = ggml_time_us();
    const uint32_t        n       = view.n_past + params.window;  // a guide behind it is no part of the ladder
    std::vector<uint32_t> cells(n);
    std::iota(cells.begin(), cells.end(), 0);
    climb(make_ladder(params, view.n_layers), view.i_layer, n, params.budget, view.cursor, cells.data());
    for (uint32_t h = 0; h < view.group; ++h) {
        float * raw = scratch.raw.data() + (size_t) h * scratch.n_pad;
        std::fill(raw, raw + view.n_past, 0.0f);
        for (uint32_t i = 0; i < std::min(n, params.budget); ++i) {
            if (cells[i] < view.n_past) {
                raw[cells[i]] = 1.0f;
            }
        }
    }
    scratch.times.score += ggml_time_us() - t_start;
}

}  // namespace

extern const restkv_method restkv_method_lacache = {
    "lacache",
    "a ladder: in each layer other cells, the older the sparser",
    /*uses_queries =*/false,
    /*uses_wo =*/false,
    /*pools =*/false,
    score,
    restkv_graph_is<RESTKV_GRAPH_MOVES>,
    /*row_weights =*/nullptr,
    RESTKV_BUDGETS_ONE,
    /*per_layer =*/false,
    /*accumulates =*/false,
    advance,
    refuse,
};
