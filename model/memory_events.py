"""The memory's input: a jagged batch as events to predict and to learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryEvents
from model.config import ModelConfig
from model.kinds import chosen

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
    is_chosen_n = chosen(bits_n, config)
    is_known_n = rows_n > 0
    first_R = starts_B1[owner_R]
    past_n, met_n, shown_n = map(np.flatnonzero, (is_chosen_n & is_known_n, is_known_n, ~is_chosen_n & is_known_n))
    past, met, shown = (
        (np.searchsorted(each, first_R), np.searchsorted(each, asked_R)) for each in (past_n, met_n, shown_n)
    )
    rows = rows_n.astype(np.int32)
    return MemoryEvents(
        target_R=rows[asked_R] if is_chosen_R is not None else np.zeros(len(asked_R), np.int32),
        chosen_R=is_chosen_R.astype(np.uint8) if is_chosen_R is not None else np.zeros(len(asked_R), np.uint8),
        past_rows=rows[past_n],
        past_begin_R=past[0],
        past_end_R=past[1],
        met_rows=rows[met_n],
        met_begin_R=met[0],
        met_end_R=met[1],
        past_ms=time_ms_n[past_n],
        now_ms_R=now_ms_R,
        shown_rows=rows[shown_n],
        shown_begin_R=shown[0],
        shown_end_R=shown[1],
        weight_R=weight_R,
        group_RC=group_RC,
    )
