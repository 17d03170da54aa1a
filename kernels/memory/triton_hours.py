# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""At what time of day items are chosen, on a GPU: by all (`kernels.memory.hours`), and by a user
(`kernels.memory.past`).

The first feature is the same for all users and changes with every group of events, so it is computed once for each row
after a group has been counted, and read by the next group's predictions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.memory import hours
from kernels.memory.arrays import NUM_HOURS
from kernels.memory.past import AROUND_MINUTES, AROUND_WEEK, DAY_MS, WEEK_MS, WEEK_SHARE
from kernels.memory.triton_features import per_unit

HOURS, DAY, PART_MS = tl.constexpr(NUM_HOURS), tl.constexpr(DAY_MS), tl.constexpr(DAY_MS // NUM_HOURS)
PRIOR = tl.constexpr(hours.PRIOR)
NEWEST_MS = tl.constexpr(hours.NEWEST_MS)
AROUND, AROUND_OF_WEEK = tl.constexpr(AROUND_MINUTES), tl.constexpr(AROUND_WEEK)
WEEK, SHARE_OF_WEEK = tl.constexpr(WEEK_MS), tl.constexpr(WEEK_SHARE)


@triton.jit
def parts_at(time_ms):
    """Two parts of the day, and the share of a choice at this time that counts for the second of them."""
    into = (time_ms % DAY + 2 * DAY - PART_MS // 2) % DAY
    part = (into // PART_MS).to(tl.int32)
    return part, (part + 1) % HOURS, (into % PART_MS).to(tl.float32) * (1.0 / PART_MS)


@triton.jit
def count_hours(hour_ptr, target, is_met, same, unit, now_ms):
    """Count a group's choices. Events of the same row (``same``) all write what the row has after them."""
    first, second, share = parts_at(now_ms)
    for part in range(HOURS):
        of_it = unit * (tl.where(first == part, 1.0 - share, 0.0) + tl.where(second == part, share, 0.0))
        at = hour_ptr + target.to(tl.int64) * HOURS + part
        count = tl.load(at, mask=is_met, other=0.0) + tl.sum(tl.where(same, of_it[None, :], 0.0), 1)
        tl.debug_barrier()  # the same row, by another thread
        tl.store(at, count, mask=is_met)


@triton.jit
def note_time(clock_ptr, is_met, now_ms):
    """Note when the latest event was; twice is as good as once."""
    newest = tl.max(tl.where(is_met, now_ms, -(1 << 62)), 0).to(tl.float64)
    noted = tl.load(clock_ptr + NEWEST_MS)
    newest = tl.where(noted == 0.0, newest, tl.maximum(noted, newest))
    tl.store(clock_ptr + NEWEST_MS, tl.where(tl.sum(is_met.to(tl.int32), 0) > 0, newest, noted))


@triton.jit
def refresh_hourly(hour_ptr, hourly_ptr, clock_ptr, task, num_rows, BLOCK: tl.constexpr):
    """Write the feature of some rows as it is at the time of the latest event."""
    row = task * BLOCK + tl.arange(0, BLOCK)
    first, second, share = parts_at(tl.load(clock_ptr + NEWEST_MS).to(tl.int64))
    total, now = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(HOURS):
        count = tl.load(hour_ptr + row.to(tl.int64) * HOURS + part, mask=row < num_rows, other=0.0)
        total += count
        now += count * (tl.where(first == part, 1.0 - share, 0.0) + tl.where(second == part, share, 0.0))
    unit = per_unit(clock_ptr + 1, 1.0)
    hourly = tl.log((now * unit * HOURS + PRIOR) / (total * unit + PRIOR))
    tl.store(hourly_ptr + row, hourly, mask=row < num_rows)


@triton.jit
def left_of(most, apart_ms, cycle_ms):
    """How many minutes are left of ``most`` at this distance in a cycle, at least 0."""
    away = apart_ms % cycle_ms
    return tl.maximum(most - (tl.minimum(away, cycle_ms - away) // 60_000).to(tl.int32), 0)


@triton.jit
def note_hours(past_ptr, history, count_ptr, WIDTH: tl.constexpr):
    """Add up how close to now each row was chosen in times of day and week: see `kernels.memory.past.MemoryPast`."""
    past_ms_ptr, num, now_ms, _ = history
    for start in range(0, num, WIDTH):
        place = start + tl.arange(0, WIDTH)
        inside = place < num
        row = tl.load(past_ptr + place, mask=inside, other=0)
        apart = tl.abs(now_ms - tl.load(past_ms_ptr + place, mask=inside, other=0))
        of_week = tl.where(2 * apart < WEEK, 0, left_of(AROUND_OF_WEEK, apart, WEEK) // SHARE_OF_WEEK)
        minutes = left_of(AROUND, apart, DAY) + of_week
        tl.atomic_add(count_ptr + row, minutes, mask=inside & (minutes > 0))
