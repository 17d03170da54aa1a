"""Turns HTTP requests into engine requests: the user's history, the moment, the items that may be recommended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serving.answering.request import Request
from serving.config import ServingConfig
from serving.errors import RequestError
from serving.request_bodies import ExplainRequest, HistoryEntry, RankRequest, RecommendRequest
from serving.users.catalogue import Conditions
from serving.users.histories import Histories
from serving.versions.manager import HeldVersion
from wire.config import ActionConfig
from wire.example import Interactions, no_interactions
from wire.hashing import Key, canonical, item_hash
from wire.moment import iso_of, unit_of

Int64 = NDArray[np.int64]
MOST_LEAD_MS = 3_600_000
"""A record that is further ahead of this machine's clock has a producer's time, not the broker's: brokers allow no more
(``message.timestamp.after.max.ms``), unless they were told to."""


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """Builds a `Request` from the body of an HTTP request. Safe for any number of threads."""

    config: ServingConfig
    histories: Histories
    features: tuple[str, ...] = ()
    """The names of the items' features, by column."""
    earliest_ms: int = ActionConfig.min_timestamp_ms
    """Requests that name an earlier time are refused, as actions are (``action.min_timestamp_ms``)."""

    def recommend(self, version: HeldVersion, request: RecommendRequest) -> Request:
        """A request for ``k`` items. Raises `RequestError`."""
        allow = hashes(request.allow) if request.allow is not None else None
        built = self._build(version, request, k=request.k, exclude_seen=request.exclude_seen, allow=allow,
                            deny=hashes(request.deny))  # fmt: skip
        if (conditions := self._conditions(request, built.now_ms)) is not None:
            built = replace(built, allow=self.histories.items.fulfilling(conditions, among=allow))
        return replace(built, diversity=request.diversity) if request.diversity else built

    def _conditions(self, request: RecommendRequest, now_ms: int) -> Conditions | None:
        """The conditions on the items; None if there are none."""
        if not request.is_filtered:
            return None
        columns = self.features
        if unknown := [name for name in request.features or () if name not in columns]:
            known = f"among {', '.join(columns)}" if columns else "none, since action.features names none"
            raise RequestError("features", known, unknown[0][:200], "send features that action.features names")
        ages = {"first_until_ms": request.min_age_s, "first_from_ms": request.max_age_s}
        return Conditions(
            domains=None if request.domains is None else tuple(map(item_hash, request.domains)),
            features={columns.index(name): tuple(map(item_hash, values))
                      for name, values in (request.features or {}).items()},
            **{bound: now_ms - round(1000 * age_s) for bound, age_s in ages.items() if age_s is not None},
        )  # fmt: skip

    def rank(self, version: HeldVersion, request: RankRequest) -> Request:
        """A request to rank candidates, in the given order. Raises `RequestError`."""
        kinds = version.network.config.kinds
        if unknown := [kind for kind in request.weights or () if kind not in kinds]:
            raise RequestError(
                "weights", f"among {', '.join(kinds)}", unknown[0][:200], "send kinds that the model knows"
            )
        return self._build(version, request, k=0, exclude_seen=False, candidates=hashes(request.items))

    def explain(self, version: HeldVersion, request: ExplainRequest) -> Request:
        """The request for what would be recommended."""
        return self._build(version, request, k=request.k, exclude_seen=request.exclude_seen)

    def _build(self, version: HeldVersion, request: RecommendRequest | RankRequest | ExplainRequest, *, k: int,
               exclude_seen: bool | None, candidates: Int64 | None = None, allow: Int64 | None = None,
               deny: Int64 | None = None) -> Request:  # fmt: skip
        max_context = version.network.config.max_context
        user, features, num_erased = None, np.zeros(0, np.int64), self.histories.num_erased
        if request.user is not None:
            user = canonical(request.user)
            known = self.histories.get(user)
            past, features = (
                (known.interactions, known.user_features) if known is not None else (no_interactions(), features)
            )
        else:
            past = past_of(request.history or [], version.network.config.kinds, max_context)
        self._check_times(request)
        last_ms = int(past.timestamp_ms[-1]) if len(past) else 0
        now_ms = max(last_ms, request.timestamp if request.timestamp is not None else self.now_ms(version))
        domain = item_hash(request.domain) if isinstance(request, RankRequest) and request.domain is not None else 0
        return Request(user, past, features, now_ms, domain, candidates, k, exclude_seen, allow, deny,
                       num_erased=num_erased)  # fmt: skip

    def _check_times(self, request: RecommendRequest | RankRequest | ExplainRequest) -> None:
        """Refuse times that are too early, such as seconds taken for milliseconds."""
        for name, at_ms in _times_of(request):
            if at_ms < self.earliest_ms:
                unit = unit_of(at_ms)
                looks = f", which looks like {unit.name}" if unit else ""
                raise RequestError(
                    name, f"milliseconds since 1970, {iso_of(self.earliest_ms)} (action.min_timestamp_ms) or later",
                    f"{at_ms} ({iso_of(at_ms)}){looks}", unit.remedy if unit else "check the clock and its unit",
                )  # fmt: skip

    def now_ms(self, version: HeldVersion) -> int:
        """What "now" means for a request without a timestamp: see `ServingConfig.clock`. Not before the broker received
        what the version has learned, unless that is more than `MOST_LEAD_MS` ahead: this machine's clock is behind."""
        wall_ms = int(time.time() * 1000)
        if self.config.clock == "auto" and version.manifest.newest_record_ms - wall_ms <= MOST_LEAD_MS:
            wall_ms = max(wall_ms, version.manifest.newest_record_ms)
        event_ms = max(self.histories.clock_ms, version.manifest.newest_event_ms)
        if self.config.clock == "wall" or event_ms <= 0:
            return wall_ms
        is_historical = wall_ms - event_ms > self.config.historical_after_s * 1000
        return event_ms if self.config.clock == "event" or is_historical else wall_ms


def _times_of(request: RecommendRequest | RankRequest | ExplainRequest) -> Iterator[tuple[str, int]]:
    """The times that a request gives, by the names of their fields."""
    if request.timestamp is not None:
        yield "timestamp", request.timestamp
    for index, entry in enumerate(request.history or ()):
        yield f"history.{index}.timestamp", entry.timestamp


def hashes(items: list[Key]) -> Int64:
    """(n,) the hashes of items."""
    return np.array([item_hash(item) for item in items], np.int64)


def past_of(history: list[HistoryEntry], kinds: tuple[str, ...], max_context: int) -> Interactions:
    """The last ``max_context`` interactions of a history sent with a request, in the order of their timestamps."""
    bit_of = {kind: 1 << bit for bit, kind in enumerate(kinds)}
    bits = [bit_of.get(entry.action) if isinstance(entry.action, str) else _bits(entry.action, bit_of)
            for entry in history]  # fmt: skip
    if None in bits:
        raise _unknown_kind(history, bits.index(None), kinds)
    times = np.array([entry.timestamp for entry in history], np.int64)
    order = np.argsort(times, kind="stable")[-max_context:].tolist()
    chosen = [history[index] for index in order]
    return Interactions(
        np.array([item_hash(entry.item) for entry in chosen], np.int64),
        np.array([bits[index] for index in order], np.uint32),
        np.array([entry.timestamp for entry in chosen], np.int64),
        np.array([item_hash(entry.domain) if entry.domain is not None else 0 for entry in chosen], np.int64),
        np.array([np.nan if entry.value is None else entry.value for entry in chosen], np.float32),
        np.zeros((len(chosen), 0), np.int64),
    )


def _bits(action: list[str], bit_of: Mapping[str, int]) -> int | None:
    """The bits of all kinds in a list; None if one is unknown."""
    bits = 0
    for kind in action:
        if kind not in bit_of:
            return None
        bits |= bit_of[kind]
    return bits


def _unknown_kind(history: list[HistoryEntry], index: int, kinds: tuple[str, ...]) -> RequestError:
    action = history[index].action
    unknown = next(kind for kind in ([action] if isinstance(action, str) else action) if kind not in kinds)
    return RequestError(
        f"history.{index}.action", f"among {', '.join(kinds)}", unknown[:200], "send a kind that the model knows"
    )
