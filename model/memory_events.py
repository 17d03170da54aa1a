"""The memory's input: a jagged batch as events to predict and to learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryEvents
from kernels.windows import RowLists, list_rows
from model.config import ModelConfig
from model.kinds import negative_bits, positive_bits

Int64 = NDArray[np.int64]


def events_of(
    rows_n: Int64,
    bits_n: NDArray[np.uint32],
    time_ms_n: Int64,
    starts_B1: Int64,
    owner_R: Int64,
    asked_R: Int64,
    now_ms_R: Int64,
    config: ModelConfig,
    *,
    is_chosen_R: NDArray[np.bool_] | None,
    weight_R: NDArray[np.float32] | None = None,
    group_RC: NDArray[np.int32] | None = None,
) -> MemoryEvents:
    """The memory's events of a jagged batch: users' interactions one after the other, row 0 for an unknown item.

    Event r is what follows interaction ``asked_R[r] - 1`` of user ``owner_R[r]``: interaction ``asked_R[r]`` itself,
    chosen or only met (``is_chosen_R``); if ``is_chosen_R`` is None, it is still to come. ``now_ms_R``: its time;
    ``weight_R`` and ``group_RC``: see `MemoryEvents`.
    """
    kinds = positive_bits(config), negative_bits(config)
    lists = list_rows(rows_n, bits_n, time_ms_n, kinds, starts_B1[owner_R], asked_R)
    target_R = rows_n[asked_R] if is_chosen_R is not None else np.zeros(len(asked_R), np.int64)
    return listed_events(lists, lists.bounds_6R, target_R, now_ms_R, is_chosen_R, weight_R, group_RC)


def listed_events(
    lists: RowLists,
    bounds_6R: Int64,
    target_R: Int64,
    now_ms_R: Int64,
    is_chosen_R: NDArray[np.bool_] | None,
    weight_R: NDArray[np.float32] | None = None,
    group_RC: NDArray[np.int32] | None = None,
) -> MemoryEvents:
    """`events_of` from lists of rows, in which ``bounds_6R`` says what comes before each event; ``target_R``: the rows
    of the interactions themselves."""
    past_begin_R, past_end_R, met_begin_R, met_end_R, shown_begin_R, shown_end_R = bounds_6R
    return MemoryEvents(
        target_R=target_R.astype(np.int32),
        chosen_R=np.zeros(len(target_R), np.uint8) if is_chosen_R is None else is_chosen_R.astype(np.uint8),
        past_rows=lists.chosen,
        past_begin_R=past_begin_R,
        past_end_R=past_end_R,
        met_rows=lists.known,
        met_begin_R=met_begin_R,
        met_end_R=met_end_R,
        past_ms=lists.chosen_ms,
        now_ms_R=now_ms_R,
        shown_rows=lists.other,
        shown_begin_R=shown_begin_R,
        shown_end_R=shown_end_R,
        weight_R=weight_R,
        group_RC=group_RC,
    )
