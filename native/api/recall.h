// A recall on host arrays: what restkv_recall_score() and restkv_recall_score_on() share.

#pragma once

#include "api/status.h"
#include "restkv.h"
#include "stages/recall.h"

restkv_status restkv_check_recall(const restkv_recall_args & args);

// The arrays as a layer; the view points into them, and into args.
restkv_recall_view restkv_recall_view_of(const restkv_recall_args & args);

// Scores and the chosen positions; device: attends, or null.
void restkv_recall_arrays(const restkv_recall_args & args, const restkv_recall_view & view,
                          restkv_recall_attends * device, float * scores, int32_t * chosen);
