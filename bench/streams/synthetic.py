"""The synthetic stream of HSTU's authors (Zhai et al., ICML 2024, section 4.1), as far as it is described there.

20,000 items in 100 categories; two fifths exist at first, the others are released evenly during the stream. A record is
a user's 128 interactions within up to five categories: a Dirichlet process, which repeats an item of the record as
often as it came before, or takes a new one with weight α, uniform in (1, 500).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
NUM_ITEMS, NUM_CATEGORIES, MOST_CATEGORIES, LENGTH = 20_000, 100, 5, 128
FIRST_SHARE = 0.4
"""The share of the items that exists from the beginning."""
BLOCK = 128
"""Records that are drawn at once."""


class Records:
    """``num_records`` records in blocks, each of which can be drawn without those before it."""

    def __init__(self, num_records: int, seed: int = 0) -> None:
        self.num_records, self._seed = num_records, seed
        rng = np.random.default_rng(seed)
        category, self._order = rng.integers(NUM_CATEGORIES, size=NUM_ITEMS), rng.permutation(NUM_ITEMS)
        self._places = [np.flatnonzero(category[self._order] == each) for each in range(NUM_CATEGORIES)]
        self._place_CI = np.zeros((NUM_CATEGORIES, max(map(len, self._places))), np.int64)
        for place_I, places in zip(self._place_CI, self._places, strict=True):
            place_I[: len(places)] = places

    @property
    def num_blocks(self) -> int:
        """Of `BLOCK` records, the last one perhaps of fewer."""
        return -(-self.num_records // BLOCK)

    def block(self, number: int) -> Int64:
        """(B, 128) items from 0 on, of the records from ``number * BLOCK`` on."""
        rng = np.random.default_rng([self._seed, number])
        record_B = np.arange(number * BLOCK, min((number + 1) * BLOCK, self.num_records))
        num = len(record_B)
        alpha_B1 = rng.uniform(1.0, 500.0, (num, 1))
        item_BL, before_L = self._new_items(rng, record_B), np.arange(LENGTH)
        repeats_BL = rng.random((num, LENGTH)) * (alpha_B1 + before_L) >= alpha_B1
        of_BL = (rng.random((num, LENGTH)) * before_L).astype(np.int64)
        for at in range(1, LENGTH):
            again_B = np.flatnonzero(repeats_BL[:, at])
            item_BL[again_B, at] = item_BL[again_B, of_BL[again_B, at]]
        return item_BL

    def _new_items(self, rng: np.random.Generator, record_B: Int64) -> Int64:
        """(B, 128) items of each record's categories that exist by then, each as likely as the others."""
        num = len(record_B)
        released_B = NUM_ITEMS * (FIRST_SHARE + (1 - FIRST_SHARE) * record_B / self.num_records)
        num_BC = np.stack([np.searchsorted(places, released_B) for places in self._places], axis=1)
        chosen_BF = rng.random((num, NUM_CATEGORIES)).argsort(axis=1)[:, :MOST_CATEGORIES]
        is_chosen_BF = np.arange(MOST_CATEGORIES) < rng.integers(1, MOST_CATEGORIES + 1, (num, 1))
        num_BF = np.take_along_axis(num_BC, chosen_BF, axis=1) * is_chosen_BF
        end_BF = num_BF.cumsum(axis=1)
        draw_BL = (rng.random((num, LENGTH)) * end_BF[:, -1:]).astype(np.int64)
        which_BL = (draw_BL[:, :, None] >= end_BF[:, None, :]).sum(axis=2)
        within_BL = draw_BL - np.take_along_axis(end_BF - num_BF, which_BL, axis=1)
        item_BL: Int64 = self._order[self._place_CI[np.take_along_axis(chosen_BF, which_BL, axis=1), within_BL]]
        return item_BL
