"""Validation of the memory's inputs: what was expected, what came, what to do."""

from __future__ import annotations

import numpy as np

from kernels.memory.arrays import Float32, Int32, Int64, MemoryArrays
from kernels.memory.events import MemoryAnswers, MemoryCandidates, MemoryEvents
from kernels.row_types import Rows

TYPES = ("float32", "uint16", "float16")


def check_events(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32 | None, num_asked: int = 0
) -> None:
    """Check events of rows below ``num_rows``, and the logits of the ``num_asked`` that are predicted."""
    if not 1 <= num_rows <= memory.capacity:
        raise ValueError(f"num_rows: expected 1 to the memory's {memory.capacity}, got {num_rows}; grow it first")
    num = len(events)
    if events.chosen_R.shape != (num,) or events.chosen_R.dtype != np.uint8:
        raise ValueError(
            f"chosen_R: expected uint8 of shape ({num},), got {events.chosen_R.dtype} {events.chosen_R.shape}"
        )
    if logit_AV is not None:
        _check_logits(num_rows, logit_AV, num_asked)
    for name in ("target_R", "past_rows", "met_rows", "shown_rows"):
        rows, least = getattr(events, name), 0 if name == "target_R" else 1
        if rows.dtype != np.int32:
            raise ValueError(f"{name}: expected int32, got {rows.dtype}")
        if len(rows) and not (least <= rows.min() and rows.max() < num_rows):
            raise IndexError(f"{name}: expected rows {least} to {num_rows - 1}, got {rows.min()} to {rows.max()}")
    for name, num_times in (("past_ms", len(events.past_rows)), ("now_ms_R", num)):
        times = getattr(events, name)
        if times.shape != (num_times,) or times.dtype != np.int64:
            raise ValueError(f"{name}: expected int64 of shape ({num_times},), got {times.dtype} {times.shape}")
    _check_groups(memory, num, events.group_RC)
    for kind, rows in (("past", events.past_rows), ("met", events.met_rows), ("shown", events.shown_rows)):
        begin, end = getattr(events, f"{kind}_begin_R"), getattr(events, f"{kind}_end_R")
        if begin.shape != (num,) or end.shape != (num,) or begin.dtype != np.int64 or end.dtype != np.int64:
            raise ValueError(f"{kind}_begin_R, {kind}_end_R: expected int64 of shape ({num},)")
        if num and not (begin.min() >= 0 and (begin <= end).all() and end.max() <= len(rows)):
            raise ValueError(f"{kind}_begin_R, {kind}_end_R: expected ranges within {len(rows)} {kind}_rows")


def _check_groups(memory: MemoryArrays, num: int, group_RC: Int32 | None) -> None:
    if group_RC is None:
        return
    if group_RC.shape != (num, memory.num_columns) or group_RC.dtype != np.int32:
        expected = f"expected int32 of shape ({num}, {memory.num_columns})"
        raise ValueError(f"group_RC: {expected}, got {group_RC.dtype} {group_RC.shape}")
    if group_RC.size and not (group_RC.min() >= 0 and group_RC.max() < memory.num_groups):
        raise IndexError(
            f"group_RC: expected groups 0 to {memory.num_groups - 1}, got {group_RC.min()} to {group_RC.max()}"
        )


def check_table(query_AD: Float32, table_VD: Rows, num_rows: int, unit_width: int) -> None:
    """Check queries, and a table of at least ``num_rows`` rows."""
    for name, matrix, types in (("query_AD", query_AD, ("float32",)), ("table_VD", table_VD, TYPES)):
        if matrix.dtype.name not in types or matrix.ndim != 2 or not matrix.flags.c_contiguous:
            raise ValueError(
                f"{name}: expected a contiguous {', '.join(types)} matrix, got {matrix.dtype} {matrix.shape}"
            )
    if len(table_VD) < num_rows or query_AD.shape[1] != table_VD.shape[1]:
        raise ValueError(
            f"table_VD: expected {num_rows} rows or more of width {query_AD.shape[1]}, got {table_VD.shape}"
        )
    if not 0 <= unit_width <= table_VD.shape[1]:
        raise ValueError(f"unit_width: expected 0 to {table_VD.shape[1]}, got {unit_width}")


def check_jagged(num: int, num_rows: int, row: Int32, begin_A1: Int64) -> None:
    """Check ``num`` lists of rows below ``num_rows``."""
    if row.dtype != np.int32 or begin_A1.dtype != np.int64 or begin_A1.shape != (num + 1,):
        raise ValueError(
            f"row, begin_A1: expected int32, and int64 of shape ({num + 1},), got {row.dtype}, {begin_A1.dtype} "
            f"{begin_A1.shape}"
        )
    if begin_A1[0] != 0 or begin_A1[-1] != len(row) or (np.diff(begin_A1) < 0).any():
        raise ValueError(f"begin_A1: expected ascending from 0 to {len(row)}, got {begin_A1[0]} to {begin_A1[-1]}")
    if len(row) and not (row.min() >= 0 and row.max() < num_rows):
        raise IndexError(f"row: expected rows 0 to {num_rows - 1}, got {row.min()} to {row.max()}")


def check_candidates(candidates: MemoryCandidates, num: int, num_rows: int, answers: MemoryAnswers) -> None:
    """Check the candidates of ``num`` queries among ``num_rows`` rows."""
    shared, probe, begin = candidates.shared_rows, candidates.probe_RP, candidates.list_begin_L1
    for name, rows in (("shared_rows", shared), ("list_rows", candidates.list_rows), ("probe_RP", probe)):
        if rows.dtype != np.int32 or not rows.flags.c_contiguous:
            raise ValueError(f"{name}: expected contiguous int32, got {rows.dtype}")
    if begin.dtype != np.int64 or begin[0] != 0 or begin[-1] != len(candidates.list_rows) or (np.diff(begin) < 0).any():
        raise ValueError(f"list_begin_L1: expected int64 ascending from 0 to {len(candidates.list_rows)}")
    if len(probe) != num or (probe.size and not (probe.min() >= 0 and probe.max() < len(begin) - 1)):
        raise IndexError(f"probe_RP: expected lists 0 to {len(begin) - 2} of {num} queries")
    if candidates.num_rows > num_rows or (len(shared) and not (shared.min() >= 0 and shared.max() < num_rows)):
        raise IndexError(f"shared_rows, list_rows: expected rows 0 to {num_rows - 1}")
    if answers.limited_R.any():
        raise ValueError("limited_R: expected no limited query among candidates; answer those without")


def _check_logits(num_rows: int, logit_AV: Float32, num_asked: int) -> None:
    if logit_AV.dtype != np.float32 or logit_AV.ndim != 2 or (logit_AV.size and logit_AV.strides[1] != 4):
        raise ValueError(
            f"logit_AV: expected float32 rows, got {logit_AV.dtype} {logit_AV.shape} with strides {logit_AV.strides}"
        )
    if logit_AV.shape[0] != num_asked or logit_AV.shape[1] < num_rows:
        raise ValueError(f"logit_AV: expected ({num_asked}, {num_rows} or more), got {logit_AV.shape}")
