"""The state of the whole pipeline, second by second, for the page, followed from the topics that all processes write.

Once a second, what is known is condensed into a `Point`. The last 15 minutes are kept, so that a newly opened page can
show them. `serving.pulse_follower` reads the topics.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import msgspec

from wire.cluster import ClusterState
from wire.dead_letter import read_headers
from wire.holding import as_ranges
from wire.lag import aged, decode_lag, measure

logger = logging.getLogger(__name__)
NUM_KEPT = 900
SILENT_S, OLD_S = 10.0, 4.0
"""After so long without a message, the trainer is called silent, and the other stages no longer a bottleneck."""
MAX_REASONS = 50
"""How many reasons of dead letters are counted separately: foreign writers may invent any number of them."""
RATE_OVER_S = 5.0
STAGES = ("ingest", "sequence", "train", "publish", "serve")


class StagePoint(msgspec.Struct, frozen=True, gc=False):
    """How far behind one stage is: in records, and in seconds of the slowest partition."""

    records: int = 0
    seconds: float = 0.0


class FrozenPoint(msgspec.Struct, frozen=True, gc=False):
    """HR@10 of weights that learn nothing more, and of the fresh ones on the same choices."""

    newest_record_ms: int
    """Kafka timestamp of the newest action that the frozen ones have learned."""
    num_interactions: int
    hr10: float
    fresh_hr10: float


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The pipeline's state at one second. Rates are per second; ``quality`` is windowed HR@10 by ranker."""

    time_ms: int
    status: str
    freshness_s: float | None
    newest_record_ms: int
    line: str
    epoch: int
    number: int
    swapped_ms: int
    stages: dict[str, StagePoint]
    bottleneck: str
    rates: dict[str, float]
    quality: dict[str, float]
    frozen: FrozenPoint | None = None
    entropy: float | None
    entropy_baseline: float | None
    num_items: int
    num_evicted: int
    num_interactions: int
    num_servers: int
    unheld: str
    """The partitions whose users no server holds, as ranges (`wire.holding`)."""
    dead_letters: int
    reasons: dict[str, int]


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """The server's own state: the version that it answers from, and how much it has done."""

    epoch: int = -1
    number: int = -1
    newest_record_ms: int = -1
    swapped_ms: int = -1
    num_swaps: int = 0
    num_requests: int = 0
    broker: bool = True
    line: str = ""
    """The line of training that it follows; empty: the main one."""


class Rates:
    """Turns counters into rates over the last `RATE_OVER_S`; a counter that falls is taken as restarted."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, float]]] = {}

    def rate(self, name: str, now_s: float, value: float) -> float:
        """The counter's recent rate per second."""
        seen = self._seen.setdefault(name, deque())
        if seen and value < seen[-1][1]:
            seen.clear()
        seen.append((now_s, value))
        while len(seen) > 2 and now_s - seen[1][0] >= RATE_OVER_S:
            seen.popleft()
        span_s = now_s - seen[0][0]
        return round((value - seen[0][1]) / span_s, 2) if span_s > 0 else 0.0


class Pulse:
    """What is known about the pipeline, and the points made of it. Fed and sampled by one thread, read by any."""

    def __init__(self, objective_s: float) -> None:
        self._objective_s, self._rates = objective_s, Rates()
        self._lag: dict[str, Any] = {}
        self.cluster = ClusterState()
        self._reasons: Counter[str] = Counter()
        self._num_letters = 0
        self._behind = ""
        self.points: deque[Point] = deque(maxlen=NUM_KEPT)
        self.num_points = 0

    def note_lag(self, value: bytes | None) -> None:
        """Take a message of the lag topic."""
        self._lag = decode_lag(value) or self._lag

    def note_status(self, value: bytes) -> None:
        """Take a message that was in the status topic at startup."""
        self.cluster.note(value)

    def hear_status(self, value: bytes, now_ms: int) -> None:
        """Take a message that has just arrived in the status topic."""
        self.cluster.hear(value, now_ms)

    def note_letter(self, headers: list[tuple[str, bytes]]) -> None:
        """Count a dead letter."""
        reason = read_headers(headers).reason[:40]
        self._reasons[reason if reason in self._reasons or len(self._reasons) < MAX_REASONS else "others"] += 1
        self._num_letters += 1

    def note_earlier_letters(self, num: int) -> None:
        """Count dead letters that are not read, being older; those read so far will be read again."""
        self._num_letters = num
        self._reasons.clear()

    def sample(self, served: Served, now_ms: int) -> Point:
        """Make and keep the point of this moment."""
        self.cluster.forget_silent(now_ms)
        lag = aged(self._lag, now_ms / 1000) if self._lag else {}
        stages = {name: _stage(lag, name) for name in STAGES}
        rates, now_s = self._measure(served, now_ms), now_ms / 1000
        fresh = round(max(0.0, now_s - served.newest_record_ms / 1000), 3) if served.newest_record_ms > 0 else None
        ranking = ("metrics", "ranking_window", "all")
        version = lag.get("num_items")
        point = Point(
            time_ms=now_ms, status=self._status(served, fresh, stages, rates, now_ms), freshness_s=fresh,
            newest_record_ms=served.newest_record_ms, line=served.line, epoch=served.epoch, number=served.number,
            swapped_ms=served.swapped_ms, stages=stages, bottleneck=self._bottleneck(stages, now_ms), rates=rates,
            quality=_quality(lag), frozen=_frozen(lag), entropy=measure(lag, *ranking, "ne"),
            entropy_baseline=measure(lag, *ranking, "ne_baseline"),
            num_items=int(version or 0), num_evicted=int(lag.get("num_evicted") or 0),
            num_interactions=int(lag.get("num_interactions") or 0),
            num_servers=int(lag.get("num_servers") or 0),
            unheld=as_ranges(self.cluster.unheld(now_ms, served.line)), dead_letters=self._num_letters,
            reasons=dict(self._reasons),
        )  # fmt: skip
        self.points.append(point)
        self.num_points += 1
        return point

    def _bottleneck(self, stages: Mapping[str, StagePoint], now_ms: int) -> str:
        """The stage that was furthest behind twice in a row: a single record on its way is not a bottleneck. While the
        trainer is silent, it is the trainer: what it said of the others only grows older."""
        is_old = bool(self._lag) and self._silent_s(now_ms) > OLD_S
        before, self._behind = self._behind, "train" if is_old else bottleneck(stages)
        return self._behind if self._behind == before else ""

    def _measure(self, served: Served, now_ms: int) -> dict[str, float]:
        told = list(self.cluster.workers.values())
        counts = {
            "actions": sum(each.num_accepted + each.num_duplicate + each.num_dead for each in told),
            "sequences": sum(each.relayed_number + 1 for each in told),
            "trainer": int(self._lag.get("num_interactions") or 0),
            "weights": served.num_swaps,
            "serving": served.num_requests,
        }
        return {name: self._rates.rate(name, now_ms / 1000, count) for name, count in counts.items()}

    def _silent_s(self, now_ms: int) -> float:
        """How long ago the trainer wrote its last message."""
        return (now_ms - int(self._lag.get("time_ms") or 0)) / 1000

    def _status(self, served: Served, fresh: float | None, stages: Mapping[str, StagePoint], rates: Mapping[str, float],
                now_ms: int) -> str:  # fmt: skip
        """The status as one word: waiting, away, silent, idle, fresh, behind or stale."""
        if served.epoch < 0 or fresh is None:
            return "waiting"
        if not served.broker:
            return "away"
        if self._silent_s(now_ms) > SILENT_S:
            return "silent"
        if fresh <= self._objective_s:
            return "fresh"
        if not rates["actions"] and not any(each.records for each in stages.values()):
            return "idle"
        return "behind" if fresh <= 6 * self._objective_s else "stale"


def bottleneck(stages: Mapping[str, StagePoint]) -> str:
    """The stage that is furthest behind, in seconds; empty if none is behind by more than one second."""
    worst = max(stages, key=lambda name: stages[name].seconds)
    return worst if stages[worst].seconds > 1.0 and stages[worst].records else ""


def _stage(lag: Mapping[str, Any], name: str) -> StagePoint:
    told = _dict(lag, "stages", name)
    return StagePoint(int(told.get("lag_records") or 0), float(told.get("lag_s") or 0.0))


def _quality(lag: Mapping[str, Any]) -> dict[str, float]:
    rankers = _dict(lag, "metrics", "retrieval_window")
    told = {name: measure(rankers, name, "hr10") for name in rankers}
    return {name: round(value, 4) for name, value in told.items() if value is not None}


def _frozen(lag: Mapping[str, Any]) -> FrozenPoint | None:
    told = _dict(lag, "metrics", "frozen")
    since_ms, num = measure(told, "newest_record_ms"), measure(told, "num_interactions")
    frozen, fresh = measure(told, "frozen", "hr10"), measure(told, "fresh", "hr10")
    if since_ms is None or num is None or frozen is None or fresh is None:
        return None
    return FrozenPoint(int(since_ms), int(num), round(frozen, 4), round(fresh, 4))


def _dict(tree: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    for name in path:
        tree = tree.get(name) or {}
        if not isinstance(tree, Mapping):
            return {}
    return tree
