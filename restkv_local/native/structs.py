"""Structures, enums and functions of native/restkv.h, in ctypes."""

from __future__ import annotations

import ctypes as C
from typing import Any

from .. import config

ABI_VERSION = 10
NAME_MAX = 32
REFUSAL_MAX = 256
REASON_MAX = 192
TEXT_MAX = 128

OK, INVALID, UNSUPPORTED, NOTHING, IO, NO_MEMORY, GONE, STATE, ARCHIVE = range(9)

# Numbers of the enums of restkv.h, which list the values of a setting in the same order; two begin with one more.
POOLING = {name: i for i, name in enumerate(config.POOLINGS)}
METRIC_MODE = {name: i for i, name in enumerate(config.METRIC_MODES)}
ALLOCATION = {name: i for i, name in enumerate(config.ALLOCATIONS)}
REDUCE: dict[str | None, int] = {name: i for i, name in enumerate((None, *config.REDUCES))}
INDICATOR = {name: i for i, name in enumerate(config.INDICATORS)}
ROWS = {name: i for i, name in enumerate((*config.ROWS, "sum"), start=1)}
STAGES = {name: i for i, name in enumerate(config.STAGES)}
PLACE = {name: i for i, name in enumerate(config.PLACES)}
# Kinds of devices, by restkv_device_kind.
DEVICE_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")
# ggml types of the arrays that restkv_score takes.
GGML_F32, GGML_F16 = 0, 1

class Params(C.Structure):
    """restkv_params"""

    _fields_ = [
        ("method", C.c_char * NAME_MAX),
        ("budget", C.c_uint32),
        ("capacity", C.c_uint32),
        ("window", C.c_uint32),
        ("kernel", C.c_uint32),
        ("scale", C.c_uint32),
        ("pooling", C.c_int32),
        ("metric_mode", C.c_int32),
        ("reduce", C.c_int32),
        ("alpha", C.c_float),
        ("tau", C.c_float),
        ("use_wo", C.c_uint8),
        ("use_norm", C.c_uint8),
        ("use_ema", C.c_uint8),
        ("stages", C.c_uint8),
        ("n_threads", C.c_uint32),
        ("seed", C.c_uint64),
        ("indicator", C.c_int32),
        ("rows", C.c_int32),
        ("n_ring", C.c_uint32),
        ("sinks", C.c_uint32),
        ("span", C.c_uint32),
        ("overlap", C.c_uint32),
    ]


class ModelInfo(C.Structure):
    """restkv_model_info"""

    _fields_ = [
        ("arch", C.c_char * NAME_MAX),
        ("refusal", C.c_char * REFUSAL_MAX),
        ("n_layer", C.c_uint32),
        ("n_layer_swa", C.c_uint32),
        ("n_layer_recurrent", C.c_uint32),
        ("n_head", C.c_uint32),
        ("n_head_kv", C.c_uint32),
        ("n_embd_head_k", C.c_uint32),
        ("n_embd_head_v", C.c_uint32),
        ("n_ctx_train", C.c_uint32),
        ("bytes_per_cell", C.c_uint64),
        ("bytes_window", C.c_uint64),
    ]


class Stats(C.Structure):
    """restkv_stats"""

    _fields_ = [
        ("capacity", C.c_uint32),
        ("budget", C.c_uint32),
        ("window", C.c_uint32),
        ("n_layer", C.c_uint32),
        ("n_head_kv", C.c_uint32),
        ("n_cells", C.c_uint32),
        ("pos_next", C.c_int32),
        ("pos_exact", C.c_int32),
        ("n_evictions", C.c_uint64),
        ("n_evicted", C.c_uint64),
        ("bytes_kv", C.c_uint64),
        ("bytes_ring", C.c_uint64),
        ("bytes_table", C.c_uint64),
        ("bytes_wo", C.c_uint64),
        ("bytes_sums", C.c_uint64),
        ("bytes_scratch", C.c_uint64),
        ("bytes_graph", C.c_uint64),
        ("n_layer_graph", C.c_uint32),
        ("n_layer_host", C.c_uint32),
        ("devices", C.c_char * NAME_MAX),
        ("reason", C.c_char * REASON_MAX),
        ("n_free", C.c_uint32),
        ("reserved", C.c_uint32),
    ]


class ShareParams(C.Structure):
    """restkv_share_params"""

    _fields_ = [
        ("kind", C.c_int32),
        ("n_layer", C.c_uint32),
        ("budgets", C.c_void_p),
        ("n_past", C.c_int32),
        ("head_max", C.c_uint32),
        ("floor", C.c_double),
    ]


class ArchiveParams(C.Structure):
    """restkv_archive_params"""

    _fields_ = [
        ("place", C.c_int32),
        ("type_k", C.c_int32),
        ("type_v", C.c_int32),
        ("n_ctx", C.c_uint32),
        ("path", C.c_char_p),
        ("n_rows", C.c_uint32),
        ("kernel", C.c_uint32),
        ("sinks", C.c_uint32),
        ("n_guide", C.c_uint32),
    ]


class ArchiveStats(C.Structure):
    """restkv_archive_stats"""

    _fields_ = [
        ("place", C.c_int32),
        ("type_k", C.c_int32),
        ("type_v", C.c_int32),
        ("n_rows", C.c_uint32),
        ("bytes", C.c_uint64),
        ("bytes_host", C.c_uint64),
        ("bytes_written", C.c_uint64),
        ("bytes_read", C.c_uint64),
        ("us_write", C.c_uint64),
        ("n_recalls", C.c_uint64),
        ("n_layers", C.c_uint64),
        ("n_chosen", C.c_uint64),
        ("n_copied", C.c_uint64),
        ("us_score", C.c_uint64),
        ("us_copy", C.c_uint64),
        ("n_layer", C.c_uint32),
        ("n_layer_graph", C.c_uint32),
        ("devices", C.c_char * NAME_MAX),
        ("reason", C.c_char * REASON_MAX),
    ]


class ArchiveRows(C.Structure):
    """restkv_archive_rows"""

    _fields_ = [
        ("layer", C.c_uint32),
        ("first", C.c_uint32),
        ("n", C.c_uint32),
        ("reserved", C.c_uint32),
        ("n_k", C.c_size_t),
        ("n_v", C.c_size_t),
        ("k", C.c_void_p),
        ("v", C.c_void_p),
    ]


class Event(C.Structure):
    """restkv_event"""

    _fields_ = [
        ("id", C.c_uint64),
        ("pos_next", C.c_int32),
        ("n_guide", C.c_uint32),
        ("n_cells", C.c_uint32),
        ("n_kept", C.c_uint32),
        ("n_layer", C.c_uint32),
        ("n_layer_graph", C.c_uint32),
        ("n_layer_host", C.c_uint32),
        ("n_rows", C.c_uint32),
        ("n_threads", C.c_uint32),
        ("bytes_moved", C.c_uint64),
        ("us_total", C.c_uint64),
        ("us_attend", C.c_uint64),
        ("us_score", C.c_uint64),
        ("us_smooth", C.c_uint64),
        ("us_select", C.c_uint64),
        ("us_compact", C.c_uint64),
    ]


class Memory(C.Structure):
    """restkv_memory"""

    _fields_ = [
        ("device", C.c_char * NAME_MAX),
        ("n_layer", C.c_uint32),
        ("bytes_weights", C.c_uint64),
        ("bytes_kv", C.c_uint64),
        ("bytes_other", C.c_uint64),
        ("bytes_ring", C.c_uint64),
        ("bytes_wo", C.c_uint64),
        ("bytes_table", C.c_uint64),
        ("bytes_graph", C.c_uint64),
        ("bytes_compute", C.c_uint64),
        ("memory_free", C.c_uint64),
        ("memory_total", C.c_uint64),
    ]


class ScoreArgs(C.Structure):
    """restkv_score_args. keep: the arrays that it points to, which must outlive it."""

    keep: object = None
    _fields_ = [
        ("params", Params),
        ("n_head", C.c_uint32),
        ("n_head_kv", C.c_uint32),
        ("n_embd_head", C.c_uint32),
        ("n_cells", C.c_uint32),
        ("n_embd_out", C.c_uint32),
        ("layer", C.c_uint32),
        ("n_layer", C.c_uint32),
        ("cursor", C.c_uint32),
        ("n_rows", C.c_uint32),
        ("all_visible", C.c_uint32),
        ("type_kv", C.c_int32),
        ("attn_scale", C.c_float),
        ("softcap", C.c_float),
        ("q", C.c_void_p),
        ("k", C.c_void_p),
        ("v", C.c_void_p),
        ("wo", C.c_void_p),
        ("pos", C.c_void_p),
        ("sinks", C.c_void_p),
    ]


class ScoreOut(C.Structure):
    """restkv_score_out"""

    _fields_ = [
        ("raw", C.c_void_p),
        ("smoothed", C.c_void_p),
        ("kernel_sizes", C.c_void_p),
        ("shifts", C.c_void_p),
        ("indices", C.c_void_p),
    ]


class RecallArgs(C.Structure):
    """restkv_recall_args. keep: the arrays that it points to, which must outlive it."""

    keep: object = None
    _fields_ = [
        ("n_head", C.c_uint32),
        ("n_head_kv", C.c_uint32),
        ("n_embd_head", C.c_uint32),
        ("n_queries", C.c_uint32),
        ("n_archive", C.c_uint32),
        ("n_own", C.c_uint32),
        ("n_rows", C.c_uint32),
        ("kernel", C.c_uint32),
        ("sinks", C.c_uint32),
        ("window", C.c_uint32),
        ("budget", C.c_uint32),
        ("n_threads", C.c_uint32),
        ("type_k", C.c_int32),
        ("attn_scale", C.c_float),
        ("softcap", C.c_float),
        ("q", C.c_void_p),
        ("row_pos", C.c_void_p),
        ("k", C.c_void_p),
        ("k_own", C.c_void_p),
        ("attn_sinks", C.c_void_p),
    ]


class Device(C.Structure):
    """restkv_device"""

    _fields_ = [
        ("name", C.c_char * NAME_MAX),
        ("description", C.c_char * TEXT_MAX),
        ("backend", C.c_char * NAME_MAX),
        ("bus", C.c_char * NAME_MAX),
        ("kind", C.c_int32),
        ("host_memory", C.c_uint32),
        ("memory_free", C.c_uint64),
        ("memory_total", C.c_uint64),
    ]


class LayerShape(C.Structure):
    """restkv_layer_shape"""

    _fields_ = [
        ("n_head", C.c_uint32),
        ("n_head_kv", C.c_uint32),
        ("n_embd_head_k", C.c_uint32),
        ("n_embd_head_v", C.c_uint32),
        ("type_k", C.c_int32),
        ("type_v", C.c_int32),
        ("n_cells", C.c_uint32),
        ("n_kept", C.c_uint32),
        ("hides", C.c_bool),
    ]


class DeviceTimes(C.Structure):
    """restkv_device_times"""

    _fields_ = [
        ("us_attend", C.c_uint64),
        ("us_choose", C.c_uint64),
        ("us_compact", C.c_uint64),
        ("bytes_attend", C.c_uint64),
        ("bytes_moved", C.c_uint64),
    ]


# name -> (result, arguments); the order is that of restkv.h
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "restkv_abi_version": (C.c_uint32, []),
    "restkv_last_status": (C.c_int, []),
    "restkv_last_error": (C.c_char_p, []),
    "restkv_clear_error": (None, []),
    "restkv_method_count": (C.c_uint32, []),
    "restkv_method_name": (C.c_char_p, [C.c_uint32]),
    "restkv_method_summary": (C.c_char_p, [C.c_uint32]),
    "restkv_model_probe": (C.c_int, [C.c_void_p, C.c_int32, C.c_int32, C.POINTER(ModelInfo)]),
    "restkv_fingerprint": (C.c_int, [C.c_char_p, C.c_char_p, C.c_size_t]),
    "restkv_arm": (C.c_int, [C.POINTER(Params), C.c_char_p, C.c_char_p]),
    "restkv_disarm": (None, []),
    "restkv_arm_shares": (C.c_int, [C.POINTER(ShareParams)]),
    "restkv_arm_archive": (C.c_int, [C.POINTER(ArchiveParams)]),
    "restkv_evict": (C.c_int, [C.c_void_p, C.c_uint32]),
    "restkv_recall": (C.c_int, [C.c_void_p, C.c_uint32]),
    "restkv_set_reading": (C.c_int, [C.c_void_p, C.c_bool, C.c_float]),
    "restkv_get_archive": (C.c_int, [C.c_void_p, C.POINTER(ArchiveStats)]),
    "restkv_get_stats": (C.c_int, [C.c_void_p, C.POINTER(Stats)]),
    "restkv_get_events": (C.c_uint32, [C.c_void_p, C.POINTER(Event), C.c_uint32]),
    "restkv_kept": (C.c_int32, [C.c_void_p, C.c_uint32, C.c_uint32, C.POINTER(C.c_int32), C.c_uint32]),
    "restkv_look": (C.c_int, [C.c_void_p, C.c_uint32, C.c_void_p, C.c_uint32, C.POINTER(C.c_uint32)]),
    "restkv_get_memory": (C.c_uint32, [C.c_void_p, C.POINTER(Memory), C.c_uint32]),
    "restkv_abort_on_flag": (C.c_bool, [C.c_void_p]),
    "restkv_score": (C.c_int, [C.POINTER(ScoreArgs), C.POINTER(ScoreOut)]),
    "restkv_recall_score": (C.c_int, [C.POINTER(RecallArgs), C.c_void_p, C.c_void_p]),
    "restkv_recall_score_on": (
        C.c_int,
        [C.POINTER(RecallArgs), C.c_char_p, C.c_uint64, C.c_void_p, C.c_void_p],
    ),
    "restkv_score_on": (C.c_int, [C.POINTER(ScoreArgs), C.c_char_p, C.c_uint64, C.POINTER(ScoreOut)]),
    "restkv_select": (C.c_int, [C.c_void_p, C.c_uint32, C.c_uint32, C.c_void_p]),
    "restkv_share": (
        C.c_int,
        [C.c_void_p, C.c_void_p, C.c_uint32, C.c_uint32, C.c_double, C.c_uint32, C.c_bool, C.c_void_p],
    ),
    "restkv_compact": (C.c_int, [C.c_void_p, C.c_size_t, C.c_size_t, C.c_size_t, C.c_void_p, C.c_uint32]),
    "restkv_hold_archive": (C.c_int, [C.c_void_p, C.c_bool]),
    "restkv_row_bytes": (C.c_int, [C.c_void_p, C.c_uint32, C.POINTER(C.c_uint64), C.POINTER(C.c_uint64)]),
    "restkv_read_rows": (C.c_int, [C.c_void_p, C.POINTER(ArchiveRows)]),
    "restkv_cut_rows": (C.c_int, [C.c_void_p, C.c_uint32]),
    "restkv_write_rows": (C.c_int, [C.c_void_p, C.POINTER(ArchiveRows)]),
    "restkv_commit_rows": (C.c_int, [C.c_void_p, C.c_uint32]),
    "restkv_device_count": (C.c_uint32, []),
    "restkv_get_device": (C.c_int, [C.c_uint32, C.POINTER(Device)]),
    "restkv_distrust": (C.c_int, [C.c_char_p, C.c_char_p]),
    "restkv_plan_graph": (
        C.c_int,
        [C.POINTER(Params), C.POINTER(LayerShape), C.c_char_p, C.POINTER(C.c_uint64), C.POINTER(C.c_uint64)],
    ),
    "restkv_plan_recall": (
        C.c_int,
        [C.POINTER(Params), C.POINTER(ArchiveParams), C.POINTER(LayerShape), C.c_char_p, *[C.POINTER(C.c_uint64)] * 2],
    ),
    "restkv_compact_on": (
        C.c_int,
        [C.c_char_p, C.c_int32, *[C.c_uint32] * 3, C.c_void_p, C.c_void_p, C.c_void_p, C.c_uint32, C.c_uint64],
    ),
    "restkv_time_on": (C.c_int, [C.POINTER(ScoreArgs), C.c_char_p, C.c_uint32, C.POINTER(DeviceTimes)]),
    "restkv_copy_on": (C.c_int, [C.c_char_p, C.c_uint64, C.c_uint32, C.POINTER(C.c_uint64)]),
}
