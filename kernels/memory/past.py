"""A user's past choices, and what else was shown, as they are seen at the time of an event."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.memory.arrays import Float64, Int32, Int64
from kernels.memory.events import MemoryEvents

VISIT_MS, SINCE_SHARE = 30 * 60 * 1000, 0.1
MOST_MATCHED, MATCHED = 3, 4
MINUTE_MS, DAY_MS, AROUND_MINUTES = 60_000, 86_400_000, 120
WEEK_MS, AROUND_WEEK, WEEK_SHARE = 7 * DAY_MS, 720, 8


@dataclass(frozen=True, slots=True, eq=False)
class MemoryPast:
    """P choices, oldest first: their rows, how long ago each was (0.1 log(1 + seconds)), and whether it belongs to the
    current visit: no pause since has lasted half an hour. ``around_P``: how close each was to now in time of day, from
    1 in the same minute to 0 at a distance of `AROUND_MINUTES`; and, if it was at least half a week ago, in time of the
    week, from 3/4 to 0 at a distance of `AROUND_WEEK` minutes, a minute for each `WEEK_SHARE`. Both are added.
    ``shown_S``: the rows that were met without being chosen, oldest first."""

    row_P: Int32
    since_P: Float64
    in_visit_P: NDArray[np.bool_]
    around_P: Float64
    shown_S: Int32

    @staticmethod
    def seen_at(now_ms: int, row_P: Int32, time_ms_P: Int64, shown_S: Int32) -> MemoryPast:
        """Choices made at ``time_ms_P``, seen at ``now_ms``, and what else was shown."""
        pause_P = np.diff(np.append(time_ms_P, now_ms))
        in_visit_P = np.cumprod((pause_P < VISIT_MS)[::-1])[::-1].astype(np.bool_)
        since_P = SINCE_SHARE * np.log1p(np.maximum(now_ms - time_ms_P, 0) / 1000.0)
        apart_ms_P = np.abs(now_ms - time_ms_P)
        around_P = (_around_day(apart_ms_P) + _around_week(apart_ms_P)) / AROUND_MINUTES
        return MemoryPast(row_P, since_P, in_visit_P, around_P, shown_S)

    @staticmethod
    def of_event(events: MemoryEvents, r: int) -> MemoryPast:
        """What the user of event ``r`` had chosen before that event."""
        mine = slice(events.past_begin_R[r], events.past_end_R[r])
        shown_S = events.shown_rows[events.shown_begin_R[r] : events.shown_end_R[r]]
        return MemoryPast.seen_at(int(events.now_ms_R[r]), events.past_rows[mine], events.past_ms[mine], shown_S)

    @property
    def matched(self) -> Int64:
        """(P,) how much each choice counts as what the user does next: 0 unless the choice before it was of the same
        item as the last one, else 1, and for each of the choices before those that was the same too `MATCHED` times
        that, up to `MOST_MATCHED` the same."""
        num = len(self.row_P)
        is_same_P, matched_P = np.ones(num, np.bool_), np.zeros(num, np.int64)
        for back in range(1, min(MOST_MATCHED, num) + 1):
            is_same_P &= np.append(np.zeros(back, np.int32), self.row_P[:-back]) == self.row_P[-back]
            matched_P[is_same_P] = MATCHED ** (back - 1)
        return matched_P

    @property
    def pause(self) -> float:
        """How long ago the last choice was; 0 if there is none."""
        return float(self.since_P[-1]) if len(self.since_P) else 0.0


def _around_day(apart_ms_P: Int64) -> Int64:
    return _left_of(AROUND_MINUTES, apart_ms_P, DAY_MS)


def _around_week(apart_ms_P: Int64) -> Int64:
    of_week_P = _left_of(AROUND_WEEK, apart_ms_P, WEEK_MS) // WEEK_SHARE
    return np.where(2 * apart_ms_P < WEEK_MS, 0, of_week_P).astype(np.int64)


def _left_of(most: int, apart_ms_P: Int64, cycle_ms: int) -> Int64:
    """How many minutes are left of ``most`` at these distances in a cycle, at least 0."""
    away_P = apart_ms_P % cycle_ms
    return np.asarray(np.maximum(most - np.minimum(away_P, cycle_ms - away_P) // MINUTE_MS, 0), np.int64)
