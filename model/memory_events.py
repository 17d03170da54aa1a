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
    chosen_n = chosen(bits_n, config)
    known_n = rows_n > 0
    first_R = starts_B1[owner_R]
    past, met, shown = (
        _ranges(kept_n, first_R, asked_R) for kept_n in (chosen_n & known_n, known_n, ~chosen_n & known_n)
    )
    rows = rows_n.astype(np.int32)
    return MemoryEvents(
        target_R=rows[asked_R] if is_chosen_R is not None else np.zeros(len(asked_R), np.int32),
        chosen_R=is_chosen_R.astype(np.uint8) if is_chosen_R is not None else np.zeros(len(asked_R), np.uint8),
        past_rows=rows[chosen_n & known_n],
        past_begin_R=past[0],
        past_end_R=past[1],
        met_rows=rows[known_n],
        met_begin_R=met[0],
        met_end_R=met[1],
        past_ms=time_ms_n[chosen_n & known_n],
        now_ms_R=now_ms_R,
        shown_rows=rows[~chosen_n & known_n],
        shown_begin_R=shown[0],
        shown_end_R=shown[1],
        weight_R=weight_R,
        group_RC=group_RC,
    )


def _ranges(kept_n: NDArray[np.bool_], first_R: Int64, asked_R: Int64) -> tuple[Int64, Int64]:
    before_n1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept_n)])
    return before_n1[first_R], before_n1[asked_R]
