"""A step's users as padded sequences: oldest first, from column 0 on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.streams.events import Step
from kernels.windows import unpack_kinds

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """B sequences of at most L interactions. ``row_BL``: 0 where there is none. ``kinds_BLK``: their kinds, as far as
    known. ``gap_BL``: seconds since the interaction before. ``owner_A``, ``last_A``: choice a follows column
    ``last_A[a]`` of sequence ``owner_A[a]``; -1: its user has no earlier interaction. ``target_A``: its row."""

    row_BL: Tensor
    kinds_BLK: Tensor
    gap_BL: Tensor
    owner_A: Tensor
    last_A: Tensor
    target_A: Tensor

    @property
    def length(self) -> int:
        """L."""
        return int(self.row_BL.shape[1])


def sequences(step: Step, most: int, kinds: tuple[int, int] | None = None, *, choices_only: bool) -> Sequences:
    """The users of a step's choices, each with at most ``most`` interactions before the first one.

    ``choices_only``: leave out what was met and not chosen. ``kinds``: (positive, negative) bits, used only for that.
    """
    batch = step.batch
    where_A = batch.target_R[step.told_E[step.asked]]
    is_target_n = np.zeros(len(batch.item_n), np.bool_)
    is_target_n[where_A] = True
    if choices_only:
        assert kinds is not None
        positive, negative = (np.uint32(bits) for bits in kinds)
        is_kept_n = is_target_n | (((batch.bits_n & positive) != 0) & ((batch.bits_n & negative) == 0))
    else:
        is_kept_n = np.ones(len(batch.item_n), np.bool_)
    first_B = np.full(len(batch.starts_B1) - 1, len(batch.item_n), np.int64)
    np.minimum.at(first_B, batch.owner_n[where_A], where_A)
    num_before_n1 = np.append(0, np.cumsum(is_kept_n))
    from_first_n = num_before_n1[:-1] - num_before_n1[np.minimum(first_B, len(batch.item_n))][batch.owner_n]
    is_kept_n &= (from_first_n >= -most) & (first_B < len(batch.item_n))[batch.owner_n]
    return _padded(step, np.flatnonzero(is_kept_n), where_A)


def _padded(step: Step, kept: Int64, where_A: Int64) -> Sequences:
    batch = step.batch
    users, owner = np.unique(batch.owner_n[kept], return_inverse=True)
    start = np.searchsorted(owner, np.arange(len(users)))
    column = np.arange(len(kept)) - start[owner]
    shape = len(users), int(column.max(initial=-1)) + 1
    row_BL, gap_BL = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    kinds_BLK = np.zeros((*shape, batch.num_kinds), np.float32)
    row_BL[owner, column] = step.row_n[kept]
    kinds_BLK[owner, column] = unpack_kinds(batch.bits_n[kept], batch.num_kinds)
    time = batch.time_ms_n[kept]
    gap_BL[owner, column] = np.where(column > 0, np.diff(time, prepend=0), 0) / 1000.0
    place = np.searchsorted(kept, where_A)
    made = (row_BL, kinds_BLK, gap_BL, owner[place], column[place] - 1, step.row_n[where_A])
    return Sequences(*(torch.from_numpy(np.ascontiguousarray(each)) for each in made))
