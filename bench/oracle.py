"""HR@10 of the made streams' own probabilities: an upper bound for every recommender.

Each choice is ranked among the items seen so far, under the rules of `bench.quality`, by the probabilities from which
the generator draws it. These include preferences and appeals that no recommender can see. So none can be expected to do
better, and the distance from the best simple rival is the most that can be gained.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from bench.streams.events import Catalogue
from bench.streams.made import Floats, Ints
from bench.streams.named import STREAMS
from bench.timing import row
from trainer.metrics.prequential import rank_gains

STREAMS_MEASURED = ("news", "shop", "series", "bazaar", "reviews", "taps")
QUICK_ACTIONS = 6_000


@dataclass(slots=True, eq=False)
class Oracle:
    """Ranks choices by the generator's probabilities: 1 is best, 0 for an item that was not known or is left out."""

    ranks: list[int] = field(default_factory=list)
    catalogue: Catalogue = field(default_factory=Catalogue)
    met: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    def __call__(self, user: int, item: int, items: Ints, chances: Floats) -> None:
        """Rank one choice, then note it."""
        rank, met = 0, self.met[user]
        left_out = met if self.catalogue.leaves_out else set[int]()
        if item in self.catalogue.row_of:
            rank = 0 if item in left_out else self._rank(item, items, chances, left_out)
            self.catalogue.note(is_repeat=item in met)
        self.ranks.append(rank)
        self.catalogue.admit(item)
        met.add(item)

    def _rank(self, item: int, items: Ints, chances: Floats, left_out: set[int]) -> int:
        found, place = np.unique(items, return_inverse=True)
        total = np.bincount(place, chances)
        own = total[found == item].sum()
        better, equal = (
            sum(each in self.catalogue.row_of and each not in left_out for each in found[those].tolist())
            for those in (total > own, total == own)
        )
        return 1 + better + equal // 2


def measure(stream: str, limit: int | None = None) -> tuple[float, float]:
    """HR@10 of a stream's own probabilities, and the share of its choices that are of unseen items."""
    oracle = Oracle()
    for _ in islice(STREAMS[stream].open(on_choice=oracle), limit):
        pass
    ranks = np.array(oracle.ranks)
    return float(rank_gains(ranks)[2].mean()), float((ranks == 0).mean())


def run(quick: bool = False) -> list[dict[str, Any]]:
    """The rows of the report."""
    found = {name: measure(name, QUICK_ACTIONS if quick else None) for name in STREAMS_MEASURED}
    return [
        row(f"{name}: HR@10 of its own chances", hits, "", note=f"{unseen:.1%} of its choices are of unseen items")
        for name, (hits, unseen) in found.items()
    ]
