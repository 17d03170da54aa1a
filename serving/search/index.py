"""Among which rows of a large table the best ones are looked for (``serving.search = "index"``).

For each user: the lists closest to the network's query, the rows with the best standing (popularity, recency) for any
length of history, and every row that has changed since the lists were made; the kernel adds those with evidence from
the user's history. All of them are scored as the exact pass scores them, with the version's own rows and counts, so
only membership is approximate. `serving.search.keeper` makes the lists and compares answers with exact ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory import MemoryCandidates, MemoryStanding
from model.tokens import ITEMS
from serving.config import ServingConfig
from serving.search.lists import ItemLists
from serving.versions.manager import HeldVersion

SEARCH_HELP = {
    "headrace_search_recall": "Share of the exact answers' items that the search by lists finds, of the last compared;"
    " absent if none was in the last ten minutes.",
    "headrace_search_recall_low": "1 while the recall, of at least 50 comparisons, is below serving.search_recall.",
    "headrace_search_compared_total": "Answers that were compared with the exact ones.",
    "headrace_search_answers_total": "Answers that were looked for by lists.",
    "headrace_search_lists": "Lists in use; 0 while every answer is exact.",
    "headrace_search_changed_rows": "Rows that have changed since the lists were made, which every query looks at.",
    "headrace_search_builds_total": "How often lists were made.",
    "headrace_search_failures_total": "How often lists could not be made, or answers not be compared.",
}
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
BEST_STANDING = 2048
"""How many rows are always looked at for each length of history, because of their standing."""
COMPARED, ENOUGH = 200, 50
"""How many of the last comparisons make the recall, and how many it takes for a warning."""
QUIET_S = 600.0
"""After so long without a comparison the recall is unknown: the lists have been renewed several times since."""
OUT = np.float32(-1e29)
NO_ROWS = np.zeros(0, np.int32)
Asked = tuple[tuple[int, int], Callable[[HeldVersion], tuple[int, int]]]
"""A version, and what counts, with that version, how many items of an exact answer were found, and how many it has."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Lists, and the rows that all queries look at; good for versions from the swap ``since`` on."""

    lists: ItemLists
    best: Int32
    changed: Int32
    shared: Int32
    since: int

    @staticmethod
    def of(lists: ItemLists, best: Int32, changed: Int32, since: int) -> _Found:
        return _Found(lists, best, changed, np.union1d(best, changed).astype(np.int32), since)


class ItemSearch:
    """The lists in use, what has changed since, and how good answers are. Safe for any number of threads.

    ``num_probes``: lists for each query; ``least_items``: smaller catalogues are answered exactly; ``least_recall``: a
    lower one is logged; ``compare_s``: an answer is compared with the exact one at most this often (0: never).
    """

    def __init__(self, num_probes: int, *, least_items: int, least_recall: float, compare_s: float) -> None:
        self.num_probes, self.least_items = num_probes, least_items
        self._least_recall, self._compare_s = least_recall, compare_s
        self._lock = threading.Lock()
        self._found: _Found | None = None
        self._changed_meanwhile: Int32 | None = None
        self._last: HeldVersion | None = None
        self.line_since = 0
        """The swap that brought the present numbering of rows."""
        self.is_asked = threading.Event()
        self._asked: Asked | None = None
        self._recalls: deque[tuple[int, int]] = deque(maxlen=COMPARED)
        self._is_low, self._compare_at, self._compared_at = False, 0.0, 0.0
        self.num_compared = self.num_builds = self.num_failures = self.num_answers = 0

    @property
    def lists(self) -> ItemLists | None:
        """The lists in use."""
        return self._found.lists if self._found is not None else None

    @property
    def changed(self) -> Int32:
        """The rows that have changed since the lists were made."""
        return self._found.changed if self._found is not None else NO_ROWS

    @property
    def num_changed(self) -> int:
        """How many rows have changed since the lists were made."""
        return len(self.changed)

    @property
    def recall(self) -> float | None:
        """The share of the exact answers' items that were found, lately; None if nothing was compared lately."""
        compared = [] if self._is_quiet else list(self._recalls)
        return sum(hit for hit, _ in compared) / sum(num for _, num in compared) if compared else None

    def readings(self) -> dict[str, float]:
        """Values for Prometheus."""
        lists, recall = self.lists, self.recall
        return {
            **({} if recall is None else {"headrace_search_recall": recall}),
            "headrace_search_recall_low": int(self.is_low),
            "headrace_search_compared_total": self.num_compared, "headrace_search_answers_total": self.num_answers,
            "headrace_search_lists": lists.num_lists if lists is not None else 0,
            "headrace_search_changed_rows": self.num_changed, "headrace_search_builds_total": self.num_builds,
            "headrace_search_failures_total": self.num_failures,
        }  # fmt: skip

    @property
    def is_low(self) -> bool:
        """Whether the recall is below what is asked for; False if nothing was compared lately."""
        return self._is_low and not self._is_quiet

    @property
    def _is_quiet(self) -> bool:
        return time.monotonic() - self._compared_at > max(QUIET_S, 2 * self._compare_s)

    def _forget_compared(self) -> None:
        self._recalls.clear()
        self._is_low = False

    def note(self, version: HeldVersion) -> None:
        """A version is about to come into service: look at what it changes. Called for each, in order."""
        with self._lock:
            changed, last, self._last = self._changed_by(version), self._last, version
            if changed is None or last is None:
                self._found, self._changed_meanwhile, self.line_since = None, None, version.born.swap
                self._forget_compared()
                return
            if self._changed_meanwhile is not None:
                self._changed_meanwhile = np.union1d(self._changed_meanwhile, changed).astype(np.int32)
            if (found := self._found) is not None:
                all_changed = np.union1d(found.changed, changed).astype(np.int32)
                self._found = _Found.of(found.lists, found.best, all_changed, found.since)

    def _changed_by(self, version: HeldVersion) -> Int32 | None:
        """Rows that this version adds or changes; None if its rows are not those of the version before."""
        last = self._last
        if last is None or version.manifest.model_id != last.manifest.model_id:
            return None
        if version.changed_rows is None:
            return _renamed(last, version)
        list_V = self._found.lists.list_V if self._found is not None else NO_ROWS
        counted = version.counted_rows
        known = counted[counted < len(list_V)]
        unlisted = np.concatenate([known[list_V[known] < 0], counted[counted >= len(list_V)]])
        return np.union1d(version.changed_rows, unlisted).astype(np.int32)

    def begin(self, current: HeldVersion) -> bool:
        """Lists are about to be made of the version in service and later ones: remember what changes meanwhile. False
        if a later one has been noted already, but is not in service yet."""
        with self._lock:
            if self._last is not current:
                return False
            self._changed_meanwhile = NO_ROWS
            return True

    def finish(self, lists: ItemLists, best: Int32, since: int) -> bool:
        """Use new lists; False if the rows that they were made of are no longer the table's."""
        with self._lock:
            changed, self._changed_meanwhile = self._changed_meanwhile, None
            if changed is None or since != self.line_since:
                return False
            self._found = _Found.of(lists, best, changed, since)
            self.num_builds += 1
            return True

    def candidates(self, version: HeldVersion, query_RD: Tensor) -> MemoryCandidates | None:
        """Where to look for the best rows for some queries; None: everywhere."""
        if (found := self._usable(version)) is None:
            return None
        lists, num_rows = found.lists, version.memory.num_rows
        probe_RP = lists.probes(query_RD[:, :-1].float(), self.num_probes)
        shared = found.shared[: np.searchsorted(found.shared, num_rows)]
        return MemoryCandidates(shared, lists.row_n, lists.begin_L1, len(lists.list_V), probe_RP)

    def rows_near(self, version: HeldVersion, row: int) -> Int64 | None:
        """Ascending rows among which those similar to ``row`` are looked for; None: everywhere."""
        if (found := self._usable(version)) is None:
            return None
        derived = version.tables[ITEMS].derived
        probe = found.lists.probes(derived[row : row + 1, :-1].float(), self.num_probes)[0]
        rows = np.union1d(found.lists.rows_of(probe), found.changed)
        return rows[: np.searchsorted(rows, version.tables[ITEMS].num_rows)].astype(np.int64)

    def _usable(self, version: HeldVersion) -> _Found | None:
        found = self._found
        if found is None or version.num_items < self.least_items or version.standing is None:
            return None
        return (
            found if version.born.swap >= found.since and version.memory.num_rows >= len(found.lists.list_V) else None
        )

    def ask(self, asked: Asked) -> None:
        """Have an answer compared with the exact one, unless one was lately."""
        if self._compare_s and (now := time.monotonic()) >= self._compare_at:
            self._compare_at, self._asked = now + self._compare_s, asked
            self.is_asked.set()

    def take_asked(self) -> Asked | None:
        """The answer that is to be compared, if there is one; only once."""
        self.is_asked.clear()
        asked, self._asked = self._asked, None
        return asked

    def compared(self, num_hits: int, num_exact: int) -> None:
        """An answer had ``num_hits`` of the exact answer's ``num_exact`` items."""
        if not num_exact:
            return
        with self._lock:
            if self._is_quiet:
                self._forget_compared()
            self._compared_at = time.monotonic()
            self._recalls.append((num_hits, num_exact))
            self.num_compared += 1
            recall, was_low = self.recall, self._is_low
            self._is_low = recall is not None and len(self._recalls) >= ENOUGH and recall < self._least_recall
        if self._is_low and not was_low:
            logger.warning(
                "search: the last %d compared answers had %.3f of the exact ones' items, and serving.search_recall is "
                "%.3f: the lists are made anew; if that does not help, raise serving.search_probes (%d), or set "
                'serving.search = "exact"', len(self._recalls), recall, self._least_recall, self.num_probes,
            )  # fmt: skip


def search_of(config: ServingConfig) -> ItemSearch | None:
    """The search that the configuration asks for; None: everything is looked at."""
    if config.search == "exact":
        return None
    return ItemSearch(
        config.search_probes, least_items=config.search_least_items, least_recall=config.search_recall,
        compare_s=config.search_compare_s,
    )  # fmt: skip


def best_standing(standing: MemoryStanding) -> tuple[Int64, Int32]:
    """Rows that compete, and those of the best standing for any length of history, both ascending."""
    base_VB = standing.base_VB
    rows = np.flatnonzero(base_VB[:, 0] > OUT)
    num, parts = min(BEST_STANDING, len(rows)), [rows[:0]]
    for base_V in base_VB.T if num else ():
        base_n = base_V[rows]
        parts.append(rows[np.argpartition(base_n, len(rows) - num)[len(rows) - num :]])
    return rows, np.unique(np.concatenate(parts)).astype(np.int32)


def directions(version: HeldVersion, rows: Int64) -> Tensor:
    """(n, D) a copy of the rows' directions, float32."""
    return version.tables[ITEMS].derived[torch.from_numpy(rows)][:, :-1].float().contiguous()


def _renamed(before: HeldVersion, after: HeldVersion) -> Int32 | None:
    """After a base: rows of other keys than before; None if they are most of them."""
    old, new = before.tables[ITEMS], after.tables[ITEMS]
    num = min(old.num_rows, new.num_rows)
    is_other = old.keys_of(np.arange(num)) != new.keys_of(np.arange(num))
    if is_other.sum() > num // 2 or before.network.config.item_width != after.network.config.item_width:
        return None
    return np.concatenate([np.flatnonzero(is_other), np.arange(num, new.num_rows)]).astype(np.int32)
