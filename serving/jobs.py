"""Each kind of request: how it becomes requests to the engine, and how its answer is encoded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import msgspec
import numpy as np
from msgspec.structs import replace

from model.tokens import ITEMS
from serving.answer_bodies import (
    ExplainAnswer,
    ExplainedItem,
    HistoryAnswer,
    ItemFacts,
    ItemsAnswer,
    PastInteraction,
    RankAnswer,
    RankedItem,
    Reason,
    RecommendAnswer,
    ScoredItem,
    SimilarAnswer,
    VersionName,
)
from serving.answering.engine import Engine
from serving.answering.explanation import NUM_PROBED, Explanation, explain
from serving.answering.request import Request, Result
from serving.answering.similar import similar_items
from serving.errors import InvalidRequestError
from serving.request_bodies import ExplainRequest, ItemsRequest, RankRequest, RecommendRequest, SimilarRequest
from serving.request_builder import RequestBuilder, hashes
from serving.search.index import ItemSearch
from serving.titles import Titles
from serving.users.histories import Histories
from serving.versions.manager import HeldVersion
from wire.hashing import canonical

NUM_PAST = 50
"""At most this many of a user's interactions are shown, the newest."""
CANDIDATES_OF_WEIGHT_1, IDS_OF_WEIGHT_1, FILTERED_OF_WEIGHT_1 = 50, 500, 20_000
"""Ranking this many candidates, looking up this many ids, or filtering this many items costs about as much as one
recommendation."""
R = TypeVar("R", RecommendRequest, RankRequest)
encode = msgspec.json.Encoder().encode


@functools.lru_cache(maxsize=16)
def _by_kind(kinds: tuple[str, ...]) -> Callable[..., dict[str, float]]:
    """A type whose JSON is that of a dict by kind, at a third of what a dict costs to make and to encode."""
    names = {f"p{index}": kind for index, kind in enumerate(kinds)}
    made = msgspec.defstruct("Probabilities", [(name, float) for name in names], rename=names, frozen=True, gc=False)
    return cast("Callable[..., dict[str, float]]", made)


def _batch(answers: Sequence[bytes]) -> bytes:
    """`RecommendBatchAnswer` or `RankBatchAnswer` from answers encoded one by one, so that other threads get a turn."""
    return b'{"answers":[' + b",".join(answers) + b"]}"


def name_of(version: HeldVersion) -> VersionName:
    """The version as answers name it."""
    return VersionName(*version.which)


@dataclass(slots=True, eq=False)
class _ModelJob(Generic[R]):
    """Requests of one kind that the model answers; ``is_batch``: they came as a list, and so do the answers."""

    builder: RequestBuilder
    requests: Sequence[R]
    is_batch: bool = False
    _prepared: list[Request] = field(default_factory=list)

    def prepare(self, version: HeldVersion) -> list[Request]:
        """A request to the engine for each of the client's. Raises `InvalidRequestError`, which names the one of a
        batch that is wrong."""
        self._prepared = []
        for index, each in enumerate(self.requests):
            try:
                self._prepared.append(self._build(version, each))
            except InvalidRequestError as error:
                raise error.under(f"requests.{index}") if self.is_batch else error from None
        return self._prepared

    def body(self, version: HeldVersion, found: Sequence[Result]) -> bytes:
        """The answer as JSON, or the batch of answers."""
        answers = [
            encode(self._answer(version, request, query, each))
            for request, query, each in zip(self.requests, self._prepared, found, strict=True)
        ]
        return _batch(answers) if self.is_batch else answers[0]

    def _build(self, version: HeldVersion, request: R) -> Request:
        raise NotImplementedError

    def _answer(self, version: HeldVersion, request: R, query: Request, found: Result) -> RecommendAnswer | RankAnswer:
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class RecommendJob(_ModelJob[RecommendRequest]):
    """Items for each of the requests."""

    @property
    def weight(self) -> float:
        """One for each request, and more for long lists of ids, for long answers that are diversified, and for filters
        that look at all items."""
        ids = sum(len(each.allow or ()) + len(each.deny) + 2 * len(each.history or ()) for each in self.requests)
        chosen = sum(each.k for each in self.requests if each.diversity)
        looked_at = len(self.builder.histories.items) * sum(each.is_filtered for each in self.requests)
        more = ids / IDS_OF_WEIGHT_1 + chosen / CANDIDATES_OF_WEIGHT_1 + looked_at / FILTERED_OF_WEIGHT_1
        return len(self.requests) + more

    def _build(self, version: HeldVersion, request: RecommendRequest) -> Request:
        return self.builder.recommend(version, request)

    def _answer(
        self, version: HeldVersion, _request: RecommendRequest, query: Request, found: Result
    ) -> RecommendAnswer:
        names = version.names
        pairs = zip(found.items.tolist(), found.scores.tolist(), strict=True)
        items = [ScoredItem(names[key], score) for key, score in pairs if key in names]
        return RecommendAnswer(version=name_of(version), freshness_s=version.freshness_s, cold=not len(query.past),
                               num_history=len(query.past), items=items)  # fmt: skip


@dataclass(slots=True, eq=False)
class RankJob(_ModelJob[RankRequest]):
    """Probabilities for the candidates of each of the requests."""

    @property
    def weight(self) -> float:
        """One for each request, and one for every `CANDIDATES_OF_WEIGHT_1` candidates."""
        num = sum(len(each.items) for each in self.requests)
        return len(self.requests) + num / CANDIDATES_OF_WEIGHT_1

    def _build(self, version: HeldVersion, request: RankRequest) -> Request:
        return self.builder.rank(version, request)

    def _answer(self, version: HeldVersion, request: RankRequest, query: Request, found: Result) -> RankAnswer:
        by_kind = _by_kind(version.network.config.kinds)
        rows = zip(request.items, found.known.tolist(), found.scores.tolist(), strict=True)
        items = [RankedItem(item, known, by_kind(*each)) for item, known, each in rows]
        if found.values is not None:
            items = [replace(each, value=value) for each, value in zip(items, found.values.tolist(), strict=True)]
        if request.weights is not None:
            weight_K = [request.weights.get(kind, 0.0) for kind in version.network.config.kinds]
            scores = (found.scores.astype(np.float64) @ np.array(weight_K)).tolist()
            items = [replace(each, score=score) for each, score in zip(items, scores, strict=True)]
        return RankAnswer(version=name_of(version), freshness_s=version.freshness_s, cold=not len(query.past),
                          num_history=len(query.past), items=items)  # fmt: skip


@dataclass(slots=True, eq=False)
class SimilarJob:
    """Items similar to one item."""

    request: SimilarRequest
    histories: Histories
    search: ItemSearch | None = None
    weight: float = 1.0

    def prepare(self, _version: HeldVersion) -> list[Request]:
        """Nothing: the tables have the answer."""
        return []

    def body(self, version: HeldVersion, _found: Sequence[Result]) -> bytes:
        """`SimilarAnswer`."""
        key = hashes([self.request.item])
        (row,) = version.tables[ITEMS].lookup(key).tolist()
        removed = self.histories.removed
        row = 0 if int(key[0]) in removed else row
        pairs = similar_items(version, row, self.request.k, removed.array, self.search) if row else []
        items = [ScoredItem(version.names[key], score) for key, score in pairs if key in version.names]
        return encode(SimilarAnswer(version=name_of(version), known=row > 0, items=items))


@dataclass(slots=True, eq=False)
class ExplainJob:
    """Why items would be recommended."""

    builder: RequestBuilder
    engine: Engine
    titles: Titles
    request: ExplainRequest

    @property
    def weight(self) -> float:
        """One for each history that is computed; always enough for the long lane."""
        num = len(self.request.items or ()) or self.request.k
        return 5.0 + NUM_PROBED * self.request.network + num / CANDIDATES_OF_WEIGHT_1

    def prepare(self, _version: HeldVersion) -> list[Request]:
        """Nothing in advance: `explain` calls the engine itself."""
        return []

    def body(self, version: HeldVersion, _found: Sequence[Result]) -> bytes:
        """`ExplainAnswer`."""
        query, request = self.builder.explain(version, self.request), self.request
        keys = [*dict.fromkeys(hashes(request.items).tolist())] if request.items is not None else None
        found = explain(self.engine, version, query, None if keys is None else np.array(keys, np.int64),
                        probes=request.network)  # fmt: skip
        given = dict(zip(hashes(request.items or []).tolist(), request.items or [], strict=True))
        items = [self._item(version, query, found, place, given) for place in range(len(found.item_C))]
        return encode(ExplainAnswer(version=name_of(version), freshness_s=version.freshness_s, cold=not len(query.past),
                                    num_history=len(query.past), items=items))  # fmt: skip

    def _item(
        self, version: HeldVersion, query: Request, found: Explanation, place: int, given: Mapping[int, int | str]
    ) -> ExplainedItem:
        key = int(found.item_C[place])
        name, is_known = version.names.get(key, given.get(key, "?")), bool(found.is_known_C[place])
        memory = found.memory_nC[:, place].sum() if is_known else np.nan
        return ExplainedItem(
            item=name, title=self.titles.get(canonical(name)), known=is_known,
            left_out=bool(found.is_left_out_C[place]), score=_number(found.score_C[place]),
            standing=_number(found.standing_C[place]), memory=_number(memory), groups=_number(found.groups_C[place]),
            network=_number(found.network_C[place]), reranking=_number(found.reranking_C[place]),
            reasons=self._reasons(version, query, found, place) if is_known else [],
        )  # fmt: skip

    def _reasons(self, version: HeldVersion, query: Request, found: Explanation, place: int) -> list[Reason]:
        """The interactions with the largest contributions, positive or negative; none with an item that was removed."""
        memory_n, without_n = found.memory_nC[:, place], found.without_nC[:, place]
        weight_n = np.abs(memory_n) + np.abs(np.nan_to_num(without_n))
        weight_n[self.builder.histories.is_removed(query.past.item_hash)] = 0
        most = np.lexsort((-np.arange(len(weight_n)), -weight_n))[: self.request.reasons]
        names = [version.names.get(key, "?") for key in query.past.item_hash[most].tolist()]
        return [
            Reason(item=name, title=self.titles.get(canonical(name)), timestamp=int(query.past.timestamp_ms[n]),
                   memory=float(memory_n[n]), network=_number(without_n[n]), after=float(found.after_nC[n, place]),
                   before=float(found.before_nC[n, place]))
            for n, name in zip(most.tolist(), names, strict=True) if weight_n[n] > 0
        ]  # fmt: skip


def _number(value: float) -> float | None:
    """The number, or None if it is not finite."""
    return float(value) if np.isfinite(value) else None


@dataclass(slots=True, eq=False)
class HistoryJob:
    """What is known about a user."""

    builder: RequestBuilder
    titles: Titles
    user: str
    weight: float = 0.5

    def prepare(self, _version: HeldVersion) -> list[Request]:
        """Nothing: the histories have the answer."""
        return []

    def body(self, version: HeldVersion, _found: Sequence[Result]) -> bytes:
        """`HistoryAnswer`."""
        past = self.builder.recommend(version, RecommendRequest(user=self.user)).past
        kinds = version.network.config.kinds
        rows = zip(past.item_hash.tolist(), past.action_bits.tolist(), past.timestamp_ms.tolist(), strict=True)
        interactions = [
            PastInteraction(
                name := version.names.get(key, "?"),
                self.titles.get(canonical(name)),
                [kind for bit, kind in enumerate(kinds) if bits >> bit & 1],
                timestamp,
            )
            for key, bits, timestamp in list(rows)[: -NUM_PAST - 1 : -1]
        ]
        return encode(HistoryAnswer(user=self.user, num_history=len(past), interactions=interactions))


@dataclass(slots=True, eq=False)
class ItemsJob:
    """What is known about some items."""

    titles: Titles
    request: ItemsRequest
    histories: Histories

    @property
    def weight(self) -> float:
        """One for every `IDS_OF_WEIGHT_1` ids, and a little for the request."""
        return 0.1 + len(self.request.items) / IDS_OF_WEIGHT_1

    def prepare(self, _version: HeldVersion) -> list[Request]:
        """Nothing: the tables have the answer."""
        return []

    def body(self, version: HeldVersion, _found: Sequence[Result]) -> bytes:
        """`ItemsAnswer`."""
        keys = hashes(self.request.items)
        known = ((version.tables[ITEMS].lookup(keys) > 0) & ~self.histories.is_removed(keys)).tolist()
        items = [
            ItemFacts(item, is_known, self.titles.get(canonical(item)))
            for item, is_known in zip(self.request.items, known, strict=True)
        ]
        return encode(ItemsAnswer(version=name_of(version), items=items))
