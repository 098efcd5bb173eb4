// The ring of queries: one more set_rows per layer, on the device that holds the cache. No wait, no copy to the host.

#pragma once

#include "cache/core.h"

struct llm_graph_context;

// Every layer's ring, where its keys lie. Throws restkv_error.
void restkv_init_ring(restkv_core & core);

// Store the queries of the last positions of a ubatch in the ring of layer `il`, and note how it attends.
void restkv_capture(const llm_graph_context & graph, restkv_core & core, ggml_tensor * q, ggml_tensor * kq_b,
                    ggml_tensor * sinks, float kq_scale, int il);
