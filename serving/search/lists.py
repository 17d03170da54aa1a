"""An inverted file over the item table: rows whose directions are similar are in the same list.

Only the membership of lists is kept, 8 bytes a row. Scores are computed from the table itself, so they are those of the
version that answers, however old the lists are. Lists are those of spherical k-means (Dhillon & Modha, "Concept
decompositions for large sparse text data using clustering", 2001) on a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Read = Callable[[Int64], Tensor]
"""Row numbers (n,) → a copy of their directions (n, D) of length 1, float32."""
SAMPLED_PER_LIST, ROUNDS, BLOCK_ROWS = 40, 6, 8192
COMPARED_ROWS = 512
"""Rows whose products with the centres are computed together: those of more do not stay in the cache."""
FEWEST_LISTS, MOST_LISTS = 16, 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class ItemLists:
    """``centre_LD``: each list's direction; ``list_V`` (V,) int32: the list of each row, -1 for none; ``row_n`` and
    ``begin_L1``: the same the other way round, list after list, rows ascending."""

    centre_LD: Tensor
    list_V: Int32
    row_n: Int32
    begin_L1: Int64

    @property
    def num_lists(self) -> int:
        """L."""
        return len(self.centre_LD)

    @staticmethod
    def of(centre_LD: Tensor, list_V: Int32) -> ItemLists:
        """From the list of each row."""
        rows = np.flatnonzero(list_V >= 0)
        lists = list_V[rows].astype(np.uint16)  # which numpy sorts in time proportional to their number
        order = np.argsort(lists, kind="stable")
        ends = np.cumsum(np.bincount(lists, minlength=len(centre_LD)), dtype=np.int64)
        return ItemLists(centre_LD, list_V, rows[order].astype(np.int32), np.append(np.int64(0), ends))

    def probes(self, direction_RD: Tensor, num: int) -> Int32:
        """(R, at most ``num``) int32 the lists closest to some directions, the closest first."""
        closeness_RL = direction_RD @ self.centre_LD.T
        return closeness_RL.topk(min(num, self.num_lists)).indices.to(torch.int32).numpy()

    def rows_of(self, lists: Int32) -> Int32:
        """The rows of some lists."""
        parts = [self.row_n[self.begin_L1[each] : self.begin_L1[each + 1]] for each in lists.tolist()]
        return np.concatenate([self.row_n[:0], *parts])


def num_lists_for(num_rows: int) -> int:
    """A power of two near twice the root: then probing lists and comparing with their centres cost about the same."""
    return int(min(MOST_LISTS, max(FEWEST_LISTS, 2 ** round(np.log2(2.0 * max(1, num_rows) ** 0.5)))))


def find_centres(rows_N: Int64, read: Read) -> Tensor:
    """(L, D) the directions of lists for these rows; the same for the same rows."""
    num_lists, rng = num_lists_for(len(rows_N)), np.random.default_rng(0)
    num = min(len(rows_N), SAMPLED_PER_LIST * num_lists)
    sampled = np.sort(rng.choice(rows_N, num, replace=False))
    sample_ND = torch.cat([read(sampled[at : at + BLOCK_ROWS]) for at in range(0, max(1, num), BLOCK_ROWS)])
    first = np.sort(rng.choice(num, min(num, num_lists), replace=False))
    centre_LD = sample_ND[torch.from_numpy(first)].clone()
    for _ in range(ROUNDS):
        list_N = torch.from_numpy(closest(sample_ND, centre_LD))
        sum_LD = torch.zeros_like(centre_LD).index_add_(0, list_N, sample_ND)
        norm_L1 = sum_LD.norm(dim=1, keepdim=True)
        centre_LD = torch.where(norm_L1 > 0, sum_LD / norm_L1.clamp(min=1e-6), centre_LD)
    return centre_LD


def assign(list_V: Int32, rows_N: Int64, centre_LD: Tensor, read: Read) -> None:
    """Write the lists of these rows, a block at a time."""
    for at in range(0, len(rows_N), BLOCK_ROWS):
        rows = rows_N[at : at + BLOCK_ROWS]
        list_V[rows] = closest(read(rows), centre_LD)


def closest(direction_ND: Tensor, centre_LD: Tensor) -> Int64:
    """(N,) the list whose centre has the largest inner product with each direction."""
    parts = [(part @ centre_LD.T).numpy().argmax(axis=1) for part in torch.split(direction_ND, COMPARED_ROWS)]
    return np.concatenate([np.zeros(0, np.int64), *parts])
