"""What a server knows and does, apart from HTTP: turns requests into jobs, and reports its state."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serving.answer_bodies import About, Readiness, UsersAnswer, VersionAnswer, VersionName
from serving.answering.batcher import Batcher
from serving.answering.engine import Engine
from serving.answering.reuse import ReuseProbe
from serving.config import ServingConfig
from serving.contact import Contact
from serving.errors import NotReadyError, RequestError
from serving.jobs import ExplainJob, HistoryJob, ItemsJob, RankJob, RecommendJob, SimilarJob, name_of
from serving.metrics import ServerMetrics
from serving.pulse import Pulse, Served
from serving.request_bodies import (
    MAX_KEY,
    ActionRequest,
    ExplainRequest,
    ForgetRequest,
    ItemsRequest,
    RankBatchRequest,
    RankRequest,
    RecommendBatchRequest,
    RecommendRequest,
    SimilarRequest,
)
from serving.request_builder import RequestBuilder
from serving.search.index import search_of
from serving.sender import ActionSender, Sendings
from serving.titles import Titles
from serving.users.histories import Histories
from serving.users.peers import Peers
from serving.users.placing import Placing
from serving.users.shard import Shard
from serving.versions.intake import Counters
from serving.versions.manager import HeldVersion, WeightsManager
from serving.versions.rollout import Rollout
from wire.config import ActionConfig

NUM_USERS = 50
Answer = Callable[[Any], Awaitable[bytes]]
"""A request → the JSON of its answer."""


@dataclass(eq=False)
class Service:
    """All parts of a server, wired together. None of this needs a broker, so tests and benchmarks can do without."""

    config: ServingConfig
    manager: WeightsManager
    histories: Histories
    line: str = ""
    """The line of training to follow unless an operator has switched to another."""
    features: tuple[str, ...] = ()
    """The names of the items' features (``action.features``)."""
    earliest_ms: int = ActionConfig.min_timestamp_ms
    """``action.min_timestamp_ms``."""
    contact: Contact = field(default_factory=Contact)
    counters: Counters = field(default_factory=Counters)
    histories_ready: threading.Event = field(default_factory=threading.Event)
    name: str = ""
    prefix: str = "headrace"
    """The server's name in the status topic, and its deployment (``kafka.prefix``)."""
    metrics: ServerMetrics | None = None
    titles: Titles = field(default_factory=Titles)
    sender: ActionSender | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the server is told to stop, so that endless streams end."""
    failure: BaseException | None = None
    """The error that ended a thread that follows a topic. Answers would only get older, so the process must end."""
    on_failure: Callable[[], None] = field(default=lambda: None)
    waits: list[Callable[[], str]] = field(default_factory=list)
    """What each thread waits for that must have read something before the server can answer; empty: nothing."""

    def __post_init__(self) -> None:
        c = self.config
        self.search = search_of(c)
        self.engine = Engine(self.histories, cache_bytes=c.cache_bytes, candidates_per_pass=c.candidates_per_pass,
                             reuse=ReuseProbe(c.cache_versions, c.cache_error), search=self.search)  # fmt: skip
        self.manager.before_swap.append(self._note)
        self.manager.before_swap.append(self._warm)
        self.batcher = Batcher(self.engine, self.manager, num_workers=c.num_workers, max_batch=c.max_batch,
                               max_waiting=c.max_waiting, max_wait_s=c.max_wait_s)  # fmt: skip
        self.histories.on_erased = self.engine.cache.drop
        self.pulse = Pulse(c.freshness_objective_s)
        self.rollout = Rollout(c.pin, self.line)
        self.shard = Shard(c.partitions, caught_up=self.histories_ready)
        self.placing = Placing(self.shard, Peers(self.name, c.peers), self.prefix, lambda: self.rollout.line,
                               c.peer_timeout_s, c.max_waiting)  # fmt: skip
        self._sendings = Sendings()
        self._builder = RequestBuilder(c, self.histories, self.features, self.earliest_ms)

    def _note(self, version: HeldVersion) -> Callable[[], None]:
        """Tell the search what a version changes before it comes into service."""
        if self.search is not None:
            self.search.note(version)
        return lambda: None

    def _warm(self, version: HeldVersion) -> Callable[[], None]:
        """Compute cache entries for a version before it comes into service; the function returned stores them."""
        num_erased, entries = self.histories.num_erased, self.engine.warm(version, self.config.warm_s)

        def put() -> None:
            for each in entries:
                self.engine.keep(each, num_erased)

        return put

    def fail(self, error: BaseException) -> None:
        """Note that a follower has failed: the server is no longer alive, nor ready. Only the first failure counts: by
        the second one the server may have given up its signal handlers, as it ends."""
        if self.failure is None:
            self.failure = error
            self.on_failure()

    def close(self) -> None:
        """Answer the requests that are waiting, and stop."""
        self.batcher.close()

    def version(self) -> HeldVersion:
        """The version in service. Raises `NotReadyError`."""
        current = self.manager.current
        if current is None:
            raise NotReadyError("no version of the weights has arrived yet; wait until /readyz says so")
        return current

    def count_requests(self) -> int:
        """How many requests were answered so far."""
        return self.metrics.num_requests if self.metrics is not None else 0

    @property
    def is_ready(self) -> bool:
        """Whether there are a version and complete histories, other servers are known, and no follower has failed."""
        is_complete = self.histories_ready.is_set() and self.placing.is_ready
        return self.failure is None and self.manager.current is not None and is_complete

    @property
    def waits_for(self) -> str:
        """What a server that is not ready waits for, as one line; empty if it is ready."""
        if self.is_ready:
            return ""
        if self.failure is not None:
            return f"its end: a thread that follows the topics has failed ({type(self.failure).__name__}; see its log)"
        told = [] if self.contact.is_up else [f"the broker, which has not answered for {self.contact.away_s:.0f} s"]
        told += [words for each in self.waits if (words := each())]
        told += [] if self.placing.is_ready else ["the status topic, to know other servers"]
        return "; ".join(told)

    async def recommend(self, request: RecommendRequest) -> bytes:
        """`RecommendAnswer` as JSON."""
        return await self.batcher.answer(RecommendJob(self._builder, [request]))

    async def recommend_batch(self, request: RecommendBatchRequest) -> bytes:
        """`RecommendBatchAnswer` as JSON."""
        return await self.batcher.answer(RecommendJob(self._builder, request.requests, is_batch=True))

    async def rank(self, request: RankRequest) -> bytes:
        """`RankAnswer` as JSON."""
        return await self.batcher.answer(RankJob(self._builder, [request]))

    async def rank_batch(self, request: RankBatchRequest) -> bytes:
        """`RankBatchAnswer` as JSON."""
        return await self.batcher.answer(RankJob(self._builder, request.requests, is_batch=True))

    async def similar(self, request: SimilarRequest) -> bytes:
        """`SimilarAnswer` as JSON."""
        return await self.batcher.answer(SimilarJob(request, self.histories, self.search))

    async def items(self, request: ItemsRequest) -> bytes:
        """`ItemsAnswer` as JSON."""
        return await self.batcher.answer(ItemsJob(self.titles, request, self.histories))

    async def explain(self, request: ExplainRequest) -> bytes:
        """`ExplainAnswer` as JSON."""
        return await self.batcher.answer(ExplainJob(self._builder, self.engine, self.titles, request))

    async def history(self, user: str) -> bytes:
        """`HistoryAnswer` as JSON. Raises `RequestError`."""
        if not 0 < len(user) <= MAX_KEY:
            raise RequestError("user", f"1 to {MAX_KEY} characters", user[:MAX_KEY], "send ?user=ID")
        return await self.batcher.answer(HistoryJob(self._builder, self.titles, user))

    async def send_action(self, request: ActionRequest) -> bytes:
        """`SentAction` as JSON. Raises `NotReadyError`, `OverloadedError` or `RequestError`."""
        version = self.version()
        kinds = version.network.config.kinds
        for kind in [request.action] if isinstance(request.action, str) else request.action:
            if kind not in kinds:
                raise RequestError(
                    "action", f"among {', '.join(kinds)}", kind[:200], "send a kind that the model knows"
                )
        timestamp_ms = self._builder.now_ms(version) + 1
        return msgspec.json.encode(await self._sendings.run(self._producing.send, request, timestamp_ms))

    async def forget(self, request: ForgetRequest) -> bytes:
        """`SentRequest` as JSON. Raises `NotReadyError` or `OverloadedError`."""
        return msgspec.json.encode(await self._sendings.run(self._producing.forget, request))

    @property
    def _producing(self) -> ActionSender:
        if self.sender is None:
            raise NotReadyError("this server has no producer; it was started without a broker", "a broker")
        return self.sender

    def users(self) -> UsersAnswer:
        """The users that acted most recently."""
        return UsersAnswer(self.histories.newest_users(NUM_USERS))

    def about(self) -> About:
        """What the page may show and do on this server."""
        current = self.manager.current
        kinds = list(current.network.config.kinds) if current else []
        return About(kinds=kinds, allow_actions=self.config.allow_actions,
                     objective_s=self.config.freshness_objective_s)  # fmt: skip

    def served(self) -> Served:
        """This server's state, for the pulse."""
        current, broker = self.manager.current, self.contact.is_up
        swaps, requests = self.manager.num_swaps, self.count_requests()
        if current is None:
            return Served(num_requests=requests, broker=broker, line=self.rollout.line)
        return Served(
            epoch=current.which[0], number=current.which[1], newest_record_ms=current.manifest.newest_record_ms,
            swapped_ms=current.swapped_ms, num_swaps=swaps, num_requests=requests, broker=broker,
            line=self.rollout.line,
        )  # fmt: skip

    def version_answer(self) -> VersionAnswer:
        """The version in service, described. Raises `NotReadyError`."""
        current = self.version()
        return VersionAnswer(
            version=name_of(current), model_id=current.manifest.model_id, freshness_s=current.freshness_s,
            age_s=max(0.0, time.time() - current.swapped_ms / 1000), num_items=current.num_items,
            num_interactions=current.manifest.num_interactions,
            newest_record_ms=current.manifest.newest_record_ms,
        )  # fmt: skip

    def readiness(self) -> Readiness:
        """Which of its preconditions the server has met."""
        current, wanted, held = self.manager.current, self.rollout.wanted, self.rollout.held
        return Readiness(
            ready=self.is_ready, waits_for=self.waits_for, version=name_of(current) if current else None,
            line=self.rollout.line,
            histories=self.histories_ready.is_set(), broker=self.contact.is_up, broker_away_s=self.contact.away_s,
            freshness_s=current.freshness_s if current else None,
            pinned=VersionName(*wanted) if wanted else None, held=VersionName(*held) if held else None,
            why=self.rollout.why,
            partitions=self.shard.partitions, unheld=sorted(self.placing.unheld),
            recall=self.search.recall if self.search is not None else None,
        )  # fmt: skip
