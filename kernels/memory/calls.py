"""The arguments of the memory's C++ functions, field by field as their sources declare them."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p


class MemoryCall(ctypes.Structure):
    """``MemoryCall`` of csrc/memory_state.h."""

    _fields_ = (
        *((name, c_int64) for name in ("stride", "num_rows", "width", "num_buckets")),
        *(
            (name, c_void_p)
            for name in ("neighbour_row", "num_neighbours", "after", "before", "direct", "weight", "seen", "heat")
        ),
        *((name, c_void_p) for name in ("first", "last", "gain", "gain_square")),
        *((name, c_void_p) for name in ("shortlist_weight", "shortlist_square", "shortlist_norm")),
        *((name, c_void_p) for name in ("clock", "dirty", "moved", "recent")),
        *((name, c_int64) for name in ("num_columns", "num_groups")),
        *(
            (name, c_void_p)
            for name in ("group", "group_next", "group_count", "group_seen", "group_total", "group_share")
        ),
        ("num_pairs", c_int64),
        *((name, c_void_p) for name in ("pair_row", "pair_next", "pair_count", "pair_dirty", "pair_moved")),
        ("num_hours", c_int64),
        ("hour", c_void_p),
        *((name, c_int64) for name in ("num_events", "logit_stride")),
        *((name, c_void_p) for name in ("target", "chosen", "weight_of", "past_rows", "met_rows")),
        *((name, c_void_p) for name in ("past_begin", "past_end")),
        *(
            (name, c_void_p)
            for name in (
                "met_begin",
                "met_end",
                "past_ms",
                "now_ms",
                "shown_rows",
                "shown_begin",
                "shown_end",
                "group_of",
                "logit",
                "rank",
                "model_rank",
                "count_rank",
                "loss",
            )
        ),
        ("seen_growth", c_double),
        ("heat_growth", c_double * 3),
        ("repeat_decay", c_double),
        *((name, c_float) for name in ("gain_rate", "gain_decay", "weight_rate", "shortlist_rate", "shortlist_decay")),
        ("exclude", c_int32),
        ("learn", c_int32),
    )


class StandCall(ctypes.Structure):
    """``StandCall`` of csrc/level/memory_stand.cpp."""

    _fields_ = (("memory", MemoryCall), ("base", c_void_p), ("root", c_void_p))


class BestCall(ctypes.Structure):
    """``BestCall`` of csrc/best_pass.h."""

    _fields_ = (
        ("memory", MemoryCall),
        *((name, c_void_p) for name in ("base", "root", "query", "table")),
        *((name, c_int64) for name in ("width", "most")),
        *((name, c_void_p) for name in ("k", "out_rows", "out_begin", "allowed_rows", "allowed_begin", "limited")),
        *((name, c_void_p) for name in ("row", "score")),
    )


class AmongCall(ctypes.Structure):
    """``AmongCall`` of csrc/level/memory_among.cpp."""

    _fields_ = (
        ("best", BestCall),
        ("shared_rows", c_void_p),
        ("num_shared", c_int64),
        *((name, c_void_p) for name in ("list_rows", "list_begin", "probe")),
        ("num_probes", c_int64),
    )


class SampledCall(ctypes.Structure):
    """``SampledCall`` of csrc/level/memory_sampled.cpp."""

    _fields_ = (
        ("memory", MemoryCall),
        ("query", c_void_p),
        ("table", c_void_p),
        *((name, c_int64) for name in ("width", "unit_width", "table_type")),
        *((name, c_void_p) for name in ("given_row", "given_begin", "given_logit")),
    )


class CandidatesCall(ctypes.Structure):
    """``CandidatesCall`` of csrc/level/memory_candidates.cpp."""

    _fields_ = (("memory", MemoryCall), ("row", c_void_p), ("begin", c_void_p), ("most", c_int64))


class RowLogitsCall(ctypes.Structure):
    """``RowLogitsCall`` of csrc/level/memory_candidates.cpp."""

    _fields_ = (
        ("query", c_void_p),
        ("table", c_void_p),
        *((name, c_int64) for name in ("num_queries", "width", "unit_width", "table_type")),
        *((name, c_void_p) for name in ("row", "begin", "logit")),
    )


class LogitsCall(ctypes.Structure):
    """``LogitsCall`` of csrc/level/memory_sampled.cpp."""

    _fields_ = (
        ("query", c_void_p),
        ("table", c_void_p),
        *((name, c_int64) for name in ("num_queries", "num_rows", "width", "unit_width", "stride", "table_type")),
        ("logit", c_void_p),
    )


class ForgetCall(ctypes.Structure):
    """``ForgetCall`` of csrc/memory_forget.cpp."""

    _fields_ = (
        *((name, c_int64) for name in ("num_rows", "width", "moved_stride", "num_pairs")),
        *((name, c_void_p) for name in ("neighbour_row", "num_neighbours", "after", "before", "direct", "weight")),
        *((name, c_void_p) for name in ("dirty", "moved")),
        *((name, c_void_p) for name in ("pair_row", "pair_next", "pair_count", "pair_dirty", "pair_moved", "gone")),
        *((name, c_int64) for name in ("capacity", "num_threads")),
    )
