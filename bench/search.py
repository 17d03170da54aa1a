"""The best items of large catalogues: everything looked at, or what the lists propose (``serving.search = "index"``).

Speed: 0.3 to 10 million items with rows of 64 numbers and full neighbourhoods, for one user alone and 64 together, on
one thread; and how long lists take to make. Recall: weights trained on ``bazaar`` (200,000 products in categories),
against the exact answers; and how it depends on the number of lists probed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.streams.made import bazaar
from bench.timing import Row, row
from headrace.config import Settings, load_settings
from headrace.file_source import FileSource
from headrace.file_training import file_configs
from kernels.memory import MemoryAnswers, MemoryArrays, MemoryCandidates, MemoryEvents, memory_best, memory_stand
from model.memory_room import NUM_BUCKETS
from serving.answering.engine import Engine
from serving.answering.request import Request
from serving.config import ServingConfig
from serving.search.index import ItemSearch, best_standing
from serving.search.keeper import SearchKeeper
from serving.search.lists import ItemLists, assign, find_centres
from serving.users.histories import Histories
from serving.versions.manager import WeightsManager
from trainer.checkpoint.snapshot import weights_snapshot
from trainer.loop import Trainer
from wire.example import Interactions
from wire.hashing import item_hash
from wire.weights import Manifest, Version

SIZES, QUICK_SIZES = (300_000, 1_000_000, 3_000_000, 10_000_000), (300_000,)
WIDTH, NEIGHBOURS, NUM_PAST, NUM_BEST, TOGETHER = 64, 23, 200, 100, 64
CHANGED, TARGET_RECALL = 4096, 0.95
BLOCK = 1 << 16
NUM_ACTIONS, NUM_USERS, PROBES = 700_000, 300, (4, 8, 16, 32, 64)


def run(quick: bool) -> list[Row]:
    """The rows of the report."""
    torch.set_num_threads(1)
    rows = [each for size in (QUICK_SIZES if quick else SIZES) for each in Catalogue(size).measure()]
    rows += [] if quick else Catalogue(SIZES[1], is_full=False).measure()
    return [*rows, *recall(NUM_ACTIONS // 10 if quick else NUM_ACTIONS)]


@dataclass(eq=False)
class Catalogue:
    """Rows around 2,000 directions, and a memory whose neighbourhoods are full."""

    num: int
    is_full: bool = True
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.table = np.empty((self.num, WIDTH), np.float32)
        centre = self.rng.standard_normal((2000, WIDTH), np.float32)
        for at in range(0, self.num, BLOCK):
            part = self.table[at : at + BLOCK]
            part[:] = centre[self.rng.integers(2000, size=len(part))] + self.rng.standard_normal(part.shape, np.float32)
            part /= np.linalg.norm(part[:, :-1], axis=1, keepdims=True)
            part[:, -1] = 0.0
        self.memory = MemoryArrays.empty(self.num, NEIGHBOURS, NUM_BUCKETS)
        self.memory.first[1:] = self.memory.last[1:] = 0
        self.memory.seen[1:] = self.rng.exponential(size=self.num - 1).astype(np.float32)
        if self.is_full:
            self._fill()

    def _fill(self) -> None:
        self.memory.num_neighbours[1:] = NEIGHBOURS
        for at in range(0, self.num, BLOCK):
            rows = self.memory.neighbour_row[at : at + BLOCK]
            rows[:] = self.rng.integers(1, self.num, rows.shape, np.int32)
            for counts in (self.memory.after, self.memory.before, self.memory.direct, self.memory.weight):
                counts[at : at + BLOCK] = 0.1

    def measure(self) -> list[Row]:
        """Both ways, one user alone and several together, and making the lists."""
        standing_ms, standing = _timed(lambda: memory_stand(self.memory, self.num))
        self.standing, rows = standing, list[Row]()
        making_ms, (lists, best) = _timed(self._lists)
        name = f"{self.num:,} items" if self.is_full else f"{self.num:,} items without neighbours"
        for num in (TOGETHER, 1):  # in this order, so that scratch memory has its pages
            exact, found = self._answer(num, None), self._answer(num, (lists, best))
            users = "1 user alone" if num == 1 else f"{num} users together"
            rows.append(row(f"{name}, {users}: everything", exact, "ms per query"))
            rows.append(
                row(f"{name}, {users}: lists", found, "ms per query", note=f"{exact / found:.1f} times as fast")
            )
        rows.append(row(f"{name}: making lists", making_ms / 1000, "s", note=f"{lists.num_lists:,} lists"))
        rows.append(row(f"{name}: what is the same for all users, for each version", standing_ms, "ms"))
        return rows

    def _lists(self) -> tuple[ItemLists, NDArray[np.int32]]:
        def read(rows: NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(self.table[rows, :-1])

        rows, best = best_standing(self.standing)
        list_V, centre_LD = np.full(self.num, -1, np.int32), find_centres(rows, read)
        assign(list_V, rows, centre_LD, read)
        return ItemLists.of(centre_LD, list_V), best

    def _answer(self, num: int, found: tuple[ItemLists, NDArray[np.int32]] | None) -> float:
        """Median processor milliseconds of a query."""
        none, times = np.zeros(0, np.int64), list[float]()
        answers = MemoryAnswers.of([NUM_BEST] * num, [none] * num, [None] * num)
        changed = self.rng.choice(self.num, CHANGED, replace=False)
        shared = None if found is None else np.union1d(found[1], changed).astype(np.int32)
        for _ in range(9 if num > 1 else 32):
            events, query = self._events(num), torch.from_numpy(self.table[self.rng.integers(1, self.num, num)] * 10)
            began = time.thread_time()
            candidates = None
            if found is not None and shared is not None:
                probe = found[0].probes(query[:, :-1], ServingConfig().search_probes)
                candidates = MemoryCandidates(shared, found[0].row_n, found[0].begin_L1, self.num, probe)
            memory_best(self.memory, self.standing, events, query.numpy(), self.table, answers, candidates)
            times.append(1000 * (time.thread_time() - began))
        return median(times[2:]) / num

    def _events(self, num: int) -> MemoryEvents:
        past = self.rng.integers(1, self.num, num * NUM_PAST, np.int32)
        ends, none, zero_R = NUM_PAST * np.arange(1, num + 1), np.zeros(0, np.int32), np.zeros(num, np.int64)
        return MemoryEvents(
            target_R=np.zeros(num, np.int32), chosen_R=np.zeros(num, np.uint8), past_rows=past,
            past_begin_R=ends - NUM_PAST, past_end_R=ends, met_rows=none, met_begin_R=zero_R, met_end_R=zero_R,
            past_ms=np.arange(num * NUM_PAST), now_ms_R=np.full(num, 10**9), shown_rows=none, shown_begin_R=zero_R,
            shown_end_R=zero_R,
        )  # fmt: skip


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.thread_time()
    result = work()
    return 1000 * (time.thread_time() - began), result


def recall(num_actions: int) -> list[Row]:
    """The share of the exact answers' items that are found, by answers' length and lists probed."""
    version, requests = trained(num_actions)
    manager = WeightsManager()
    search = ItemSearch(1, least_items=1, least_recall=0.0, compare_s=0.0)
    manager.stage(version)
    manager.swap()
    assert manager.current is not None
    search.note(manager.current)
    assert SearchKeeper(search, manager).renew()
    exact, found = Engine(Histories(10**9), cache_bytes=0), Engine(Histories(10**9), cache_bytes=0, search=search)
    rows, num_items = list[Row](), manager.current.num_items
    for k in (10, NUM_BEST):
        asked = [replace(each, k=k) for each in requests]
        expected = exact.answer(manager.current, asked)
        for search.num_probes in PROBES:
            ours = found.answer(manager.current, asked)
            hits = sum(int(np.isin(e.items, f.items).sum()) for e, f in zip(expected, ours, strict=True))
            share = hits / sum(len(each.items) for each in expected)
            target = TARGET_RECALL if search.num_probes == ServingConfig().search_probes else None
            name = f"recall@{k} of {num_items:,} trained items, {search.num_probes} of {num_lists(search)} lists"
            rows.append(row(name, share, "", target))
    return rows


def num_lists(search: ItemSearch) -> int:
    """How many lists are in use."""
    assert search.lists is not None
    return search.lists.num_lists


def trained(num_actions: int) -> tuple[Version, list[Request]]:
    """Weights that have learned a stream, and requests of the users that acted last."""
    past: dict[int, list[dict[str, Any]]] = {}
    settings = load_settings()
    action = replace(settings.action, kinds=("view", "cart", "buy"), features=("category",))
    learner = _trainer(settings.model_copy(update={"action": action}), _noted(bazaar(num_actions), past)).learner
    learner.names.all = {item_hash(item): item for item in {each["item"] for rows in past.values() for each in rows}}
    kinds, config = list(action.kinds), learner.model.config
    manifest = Manifest(
        model_id="bench", epoch=1, number=0, kind="base", onto_number=-1, base_number=0, base_offset=0, num_chunks=1,
        num_bytes=0, checksum="", covered={}, covered_offsets={}, newest_event_ms=0, newest_record_ms=0,
        num_interactions=learner.num_interactions, plan=[], model_config=config.as_dict(), created_ms=0, metrics={},
    )  # fmt: skip
    newest = sorted(past.values(), key=lambda rows: -rows[-1]["timestamp"])[:NUM_USERS]
    now_ms = newest[0][-1]["timestamp"] + 1000
    requests = [Request(None, _interactions(rows, kinds), np.zeros(0, np.int64), now_ms) for rows in newest]
    return Version(manifest, weights_snapshot(learner, everything=True)), requests


def _noted(actions: Iterator[dict[str, Any]], past: dict[int, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The actions, which are added to their users' past."""
    for action in actions:
        past.setdefault(action["user"], []).append(action)
        yield action


def _trainer(settings: Settings, actions: Any) -> Trainer:
    """A trainer that has learned these actions."""
    first = next(actions)
    action, sequence, model = file_configs(settings, first)
    whole, take = itertools.chain([first], actions), settings.trainer.file_take
    trainer = Trainer(
        model, settings.trainer, lambda positions: FileSource(whole, action, sequence, take, positions),
        checkpoint_dir=None,
    )  # fmt: skip
    trainer.run()
    return trainer


def _interactions(rows: list[dict[str, Any]], kinds: list[str]) -> Interactions:
    """A user's last actions."""
    rows = rows[-NUM_PAST:]
    return Interactions(
        np.array([item_hash(each["item"]) for each in rows]),
        np.array([sum(1 << kinds.index(kind) for kind in each["action"]) for each in rows], np.uint32),
        np.array([each["timestamp"] for each in rows]), np.zeros(len(rows), np.int64),
        np.full(len(rows), np.nan, np.float32),
        np.array([[item_hash(each["features"]["category"])] for each in rows]),
    )  # fmt: skip
