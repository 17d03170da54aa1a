"""What a server knows and does, apart from HTTP: requests to asks, answers to messages, and how things stand."""

from __future__ import annotations

import threading
import time
from asyncio import wrap_future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.batcher import Answered, Batcher
from serving.cache import HistoryCache
from serving.config import ServingConfig
from serving.engine import Ask, Engine
from serving.errors import NotReadyError, RequestError
from serving.histories import Histories
from serving.holder import HeldVersion, VersionHolder
from serving.messages import HistoryEntry, RankRequest, RecommendRequest
from serving.metrics import Reading, ServerMetrics, readings
from serving.subscriber import Counters
from wire.example import Interactions
from wire.hashing import canonical, item_hash
from wire.kafka.following import Contact

HELP = {
    "headrace_freshness_seconds": "Age of the newest action that the served weights have learned from.",
    "headrace_version_epoch": "Epoch of the version served; -1 before the first.",
    "headrace_version_number": "Number of the version served; -1 before the first.",
    "headrace_version_swaps_total": "Versions that came into service.",
    "headrace_version_copies_total": "Swaps that paid for a copy of the tables, because a request held an old version.",
    "headrace_versions_dropped_total": "Torn, corrupt, fenced or repeated versions that were not served.",
    "headrace_versions_unlinked_total": "Deltas whose base was not here.",
    "headrace_versions_refused_total": "Versions that do not fit this build.",
    "headrace_broker_up": "1 while the broker answers.",
    "headrace_histories": "Users whose history is here.",
    "headrace_history_bytes": "Memory of the histories.",
    "headrace_histories_forgotten_total": "Histories dropped to stay within serving.history_bytes.",
    "headrace_cache_bytes": "Memory of cached keys and values.",
    "headrace_cache_hits_total": "Requests that could use cached keys and values.",
    "headrace_cache_misses_total": "Requests that could not.",
}


@dataclass(eq=False)
class Service:
    """All parts of a server, wired. Nothing here needs a broker, so that tests and benchmarks can do without."""

    config: ServingConfig
    holder: VersionHolder
    histories: Histories
    contact: Contact = field(default_factory=Contact)
    counters: Counters = field(default_factory=Counters)
    histories_ready: threading.Event = field(default_factory=threading.Event)
    metrics: ServerMetrics | None = None

    def __post_init__(self) -> None:
        c = self.config
        self.engine = Engine(self.histories, cache_bytes=c.cache_bytes, candidates_per_pass=c.candidates_per_pass)
        self.batcher = Batcher(self.engine, self.holder, num_workers=c.num_workers, max_batch=c.max_batch,
                               max_waiting=c.max_waiting)  # fmt: skip

    def close(self) -> None:
        """Finish what waits."""
        self.batcher.close()

    def version(self) -> HeldVersion:
        """The version in use. Raises `NotReadyError`."""
        current = self.holder.current
        if current is None:
            raise NotReadyError("no version of the weights has arrived yet; wait until /readyz says so")
        return current

    def count_requests(self) -> int:
        """Requests answered so far."""
        return self.metrics.num_requests if self.metrics is not None else 0

    @property
    def is_ready(self) -> bool:
        """Whether there is a version, and the histories were read to the end that they had at start."""
        return self.holder.current is not None and self.histories_ready.is_set()

    async def recommend(self, request: RecommendRequest) -> dict[str, Any]:
        """`RecommendAnswer`, as plain values."""
        self._limit("k", request.k, self.config.max_k, "serving.max_k")
        ask, is_cold = self._ask(request, None, request.k, exclude_seen=request.exclude_seen)
        answered = await wrap_future(self.batcher.submit(ask))
        pairs = zip(answered.names, answered.found.scores.tolist(), strict=True)
        items = [{"item": name, "score": score} for name, score in pairs if name is not None]
        return {**_frame(answered, ask, is_cold), "items": items}

    async def rank(self, request: RankRequest) -> dict[str, Any]:
        """`RankAnswer`, as plain values."""
        self._limit("items", len(request.items), self.config.max_candidates, "serving.max_candidates")
        hashes = np.array([item_hash(item) for item in request.items], np.int64)
        ask, is_cold = self._ask(request, hashes, 0, exclude_seen=False)
        answered = await wrap_future(self.batcher.submit(ask))
        rows = zip(request.items, answered.found.known.tolist(), answered.found.scores.tolist(), strict=True)
        items = [{"item": item, "known": known, "probabilities": dict(zip(answered.kinds, each, strict=True))}
                 for item, known, each in rows]  # fmt: skip
        return {**_frame(answered, ask, is_cold), "items": items}

    def _limit(self, name: str, got: int, most: int, key: str) -> None:
        if got > most:
            raise RequestError(name, f"at most {most}", got, f"ask for less, or raise {key}")

    def _ask(self, request: RecommendRequest | RankRequest, candidates: NDArray[np.int64] | None, k: int, *,
             exclude_seen: bool) -> tuple[Ask, bool]:  # fmt: skip
        version = self.version()
        max_context = version.network.config.max_context
        user, features = None, np.zeros(0, np.int64)
        if request.user is not None:
            user = canonical(request.user)
            known = self.histories.get(user)
            past, features = (known.interactions, known.user_features) if known is not None else (no_past(), features)
        else:
            past = self._past_of(request.history or [], version.network.config.kinds, max_context)
        last_ms = int(past.timestamp_ms[-1]) if len(past) else 0
        now_ms = max(last_ms, request.timestamp if request.timestamp is not None else self._now_ms(version))
        domain = item_hash(request.domain) if request.domain is not None else 0
        return Ask(user, past, features, now_ms, domain, candidates, k, exclude_seen), not len(past)

    def _past_of(self, history: list[HistoryEntry], kinds: tuple[str, ...], max_context: int) -> Interactions:
        self._limit("history", len(history), self.config.max_history, "serving.max_history")
        bits = [_bits(entry, index, kinds) for index, entry in enumerate(history)]
        order = sorted(range(len(history)), key=lambda index: history[index].timestamp)[-max_context:]
        chosen = [history[index] for index in order]
        return Interactions(
            np.array([item_hash(entry.item) for entry in chosen], np.int64),
            np.array([bits[index] for index in order], np.uint32),
            np.array([entry.timestamp for entry in chosen], np.int64),
            np.array([item_hash(entry.domain) if entry.domain is not None else 0 for entry in chosen], np.int64),
            np.array([np.nan if entry.value is None else entry.value for entry in chosen], np.float32),
            np.zeros((len(chosen), 0), np.int64),
        )

    def _now_ms(self, version: HeldVersion) -> int:
        wall_ms = int(time.time() * 1000)
        event_ms = max(self.histories.clock_ms, version.manifest.newest_event_ms)
        if self.config.clock == "wall" or event_ms <= 0:
            return wall_ms
        is_replay = wall_ms - event_ms > self.config.replay_after_s * 1000
        return event_ms if self.config.clock == "event" or is_replay else wall_ms

    def readings(self) -> list[Reading]:
        """For Prometheus."""
        current, cache, counters = self.holder.current, self.engine.cache, self.counters
        epoch, number = current.which if current else (-1, -1)
        values: dict[str, float] = {"headrace_freshness_seconds": current.freshness_s} if current else {}
        values |= {
            "headrace_version_epoch": epoch, "headrace_version_number": number,
            "headrace_version_swaps_total": self.holder.num_swaps,
            "headrace_version_copies_total": self.holder.num_copies,
            "headrace_versions_dropped_total": counters.num_dropped,
            "headrace_versions_unlinked_total": counters.num_unlinked,
            "headrace_versions_refused_total": counters.num_refused, "headrace_broker_up": self.contact.is_up,
            "headrace_histories": len(self.histories), "headrace_history_bytes": self.histories.num_bytes,
            "headrace_histories_forgotten_total": self.histories.num_forgotten,
            **_cache_values(cache),
        }  # fmt: skip
        return readings(HELP, values)


def no_past() -> Interactions:
    """The history of someone unknown."""
    none = np.zeros(0, np.int64)
    return Interactions(none, np.zeros(0, np.uint32), none, none, np.zeros(0, np.float32), np.zeros((0, 0), np.int64))


def _cache_values(cache: HistoryCache) -> dict[str, float]:
    return {"headrace_cache_bytes": cache.num_bytes, "headrace_cache_hits_total": cache.num_hits,
            "headrace_cache_misses_total": cache.num_misses}  # fmt: skip


def _bits(entry: HistoryEntry, index: int, kinds: tuple[str, ...]) -> int:
    bits = 0
    for kind in [entry.action] if isinstance(entry.action, str) else entry.action:
        if kind not in kinds:
            raise RequestError(
                f"history.{index}.action", f"among {', '.join(kinds)}", kind, "send a kind that the model knows"
            )
        bits |= 1 << kinds.index(kind)
    return bits


def _frame(answered: Answered, ask: Ask, is_cold: bool) -> dict[str, Any]:
    epoch, number = answered.which
    return {"version": {"epoch": epoch, "number": number}, "freshness_s": answered.freshness_s, "cold": is_cold,
            "num_history": len(ask.past)}  # fmt: skip
