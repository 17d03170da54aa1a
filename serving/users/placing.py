"""Answers requests about users where their histories are: here, or on another server that holds them.

A request is forwarded at most once: one that comes from another server is answered here or refused (421). A batch whose
users are held by several servers is divided, and its answers are put together in order.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from serving.answer_bodies import Holder, PartitionsAnswer, Problem, Refusal
from serving.errors import InvalidRequestError, MisdirectedError, NotReadyError, RelayedError
from serving.request_bodies import RankBatchRequest, RecommendBatchRequest
from serving.users.peers import Peer, Peers
from serving.users.question import Question, mark_of
from serving.users.shard import Shard
from wire.hashing import Key, canonical
from wire.holding import as_ranges
from wire.partitioner import murmur2

if TYPE_CHECKING:
    from serving.users.forwarding import Forwarder

Answer = Callable[[Any], Awaitable[bytes]]
_PLACE = re.compile(r"^requests\.\d+")
HELP = {
    "headrace_partitions_held": "Partitions of the users whose histories this server holds.",
    "headrace_partitions_unheld": "Partitions that neither this server nor another holds, as far as it knows.",
    "headrace_requests_forwarded_total": "Requests, or parts of batches, forwarded to servers that hold their users.",
    "headrace_forwards_failed_total": "Of these, those that no server answered.",
    "headrace_peer_failures_total": "Times that another server did not answer a forwarded request as it should.",
}
NOT_YET = "the histories of this server's users are still being read; wait until /readyz says that they are"


class _Requests(msgspec.Struct):
    requests: list[msgspec.Raw]


class _Answers(msgspec.Struct):
    answers: list[msgspec.Raw]


_requests, _answers = msgspec.json.Decoder(_Requests), msgspec.json.Decoder(_Answers)
_refusal = msgspec.json.Decoder(Refusal)


@dataclass(eq=False)
class Placing:
    """``prefix``: the deployment; ``line``: the line of training that is followed; ``known``: set once other servers'
    earlier reports are read."""

    shard: Shard
    peers: Peers
    prefix: str
    line: Callable[[], str]
    timeout_s: float
    max_waiting: int
    known: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._forwarder: Forwarder | None = None

    @property
    def forwarder(self) -> Forwarder:
        """Made in the event loop. A server that holds all users does without its imports."""
        if self._forwarder is None:
            from serving.users.forwarding import Forwarder

            self._forwarder = Forwarder(self.mark, self.timeout_s, self.max_waiting)
        return self._forwarder

    @property
    def is_ready(self) -> bool:
        """Whether it is known who holds the users that are not held here."""
        return self.shard.is_whole or self.known.is_set()

    def mark(self) -> str:
        """What requests to and from other servers must say."""
        return mark_of(self.prefix, self.shard.num_partitions, self.line())

    async def close(self) -> None:
        """Close the connections to other servers."""
        if self._forwarder is not None:
            await self._forwarder.close()

    async def answer(self, answer: Answer, request: Any, question: Question, mark: str | None) -> bytes:
        """The answer to a decoded request, which came as ``question``; ``mark``: its header, if it was forwarded.

        Raises what ``answer`` and `Forwarder.ask` raise, and `MisdirectedError`.
        """
        is_batch = isinstance(request, RecommendBatchRequest | RankBatchRequest)
        users = [each.user for each in request.requests] if is_batch else [getattr(request, "user", request)]
        if mark is not None:
            self._check(mark, users)
            return await answer(request)
        if self.shard.is_whole:
            return await answer(request)
        if not self.shard.num_partitions:
            raise NotReadyError(NOT_YET, "the number of partitions")
        elsewhere = [self._elsewhere(user) for user in users]
        if not any(each is not None for each in elsewhere):
            return await answer(request)
        if is_batch:
            return await self._divided(answer, request, question, elsewhere)
        (partition,) = elsewhere
        assert partition is not None
        return await self._ask(partition, self._holders(partition), question, users[0])

    def _elsewhere(self, user: Key | None) -> int | None:
        """The user's partition, if it is not held here; None also for a request with a history of its own."""
        partition = self.shard.partition_of(user) if user is not None else None
        return None if partition is None or partition in self.shard.held else partition

    def _holders(self, partition: int) -> list[Peer]:
        return self.peers.holders(partition, self.shard.num_partitions)

    async def _ask(self, partition: int, holders: Sequence[Peer], question: Question, user: Key | None) -> bytes:
        turn = murmur2(canonical("" if user is None else user).encode()) // max(1, self.shard.num_partitions)
        return await self.forwarder.ask(f"partition {partition}", holders, question, turn=turn, line=self.line())

    async def _divided(
        self, answer: Answer, request: Any, question: Question, elsewhere: Sequence[int | None]
    ) -> bytes:
        """The answers to a batch that is answered in parts: one here, and one by each set of holders."""
        holders = {each: self._holders(each) for each in set(elsewhere) if each is not None}
        parts: dict[tuple[str, ...] | None, list[int]] = {}
        for index, partition in enumerate(elsewhere):
            by = None if partition is None else (*(each.name for each in holders[partition]),)
            if by == ():
                await self._ask(partition or 0, [], question, None)  # raises
            parts.setdefault(by, []).append(index)
        raw = _requests.decode(question.body).requests

        async def part(indices: list[int]) -> list[msgspec.Raw]:
            partition = elsewhere[indices[0]]
            if partition is None:
                return _in_parts(await answer(replace(request, requests=[request.requests[n] for n in indices])))
            body = b'{"requests":[' + b",".join(bytes(raw[n]) for n in indices) + b"]}"
            asked = Question(question.method, question.target, body, question.token)
            told = await self._ask(partition, holders[partition], asked, request.requests[indices[0]].user)
            if len(found := _in_parts(told)) != len(indices):
                raise NotReadyError(f"a holder of partition {partition} sent {len(found)} answers to {len(indices)} "
                                    "requests; see its log", "an answer to each request")  # fmt: skip
            return found

        found = await asyncio.gather(*map(part, parts.values()), return_exceptions=True)
        joined: list[bytes] = [b""] * len(elsewhere)
        for indices, answers in zip(parts.values(), found, strict=True):
            if isinstance(answers, BaseException):
                raise _in_whole(answers, indices)
            for index, each in zip(indices, answers, strict=True):
                joined[index] = bytes(each)
        return b'{"answers":[' + b",".join(joined) + b"]}"

    def _check(self, mark: str, users: Sequence[Key | None]) -> None:
        """Refuse a forwarded request that this server must not answer."""
        if not (self.shard.caught_up.is_set() and self.shard.num_partitions):
            raise NotReadyError(NOT_YET, "complete histories")
        if mark != self.mark():
            raise MisdirectedError(f"the mark {self.mark()!r}", f"{mark[:200]!r}")
        for user in users:
            if (partition := self._elsewhere(user)) is not None:
                held = as_ranges(self.shard.held) or "none"
                raise MisdirectedError(f"a user of partitions {held}", f"one of partition {partition}")

    def counts(self) -> tuple[int, int, int]:
        """Requests that were forwarded, those of them that nobody answered, and failures of single servers."""
        made = self._forwarder
        return (made.num_forwarded, made.num_failed, made.num_peer_failures) if made is not None else (0, 0, 0)

    def values(self) -> dict[str, float]:
        """Values for Prometheus, by the names in `HELP`."""
        counts = (len(self.shard.held), len(self.unheld), *self.counts())
        return dict(zip(HELP, map(float, counts), strict=True))

    @property
    def unheld(self) -> frozenset[int]:
        """The partitions that nobody holds, as far as this server knows."""
        return self.peers.unheld(self.shard.held, self.shard.num_partitions)

    def partitions_answer(self) -> PartitionsAnswer:
        """Who holds what."""
        shard = self.shard
        others = [each for each in self.peers.live() if each.num_partitions == shard.num_partitions]
        return PartitionsAnswer(
            num_partitions=shard.num_partitions, held=sorted(shard.held), unheld=sorted(self.unheld),
            others=[Holder(each.name, each.address, sorted(each.held)) for each in others if each.held],
        )  # fmt: skip


def _in_parts(body: bytes) -> list[msgspec.Raw]:
    try:
        return _answers.decode(body).answers
    except msgspec.DecodeError as error:
        raise NotReadyError(f"a holder's answer is no list of answers ({error}); see its log", "answers") from error


def _in_whole(error: BaseException, indices: Sequence[int]) -> BaseException:
    """A part's error; if it says which request is wrong, with that one's place in the whole batch."""
    problems = list[Problem]()
    if isinstance(error, InvalidRequestError):
        problems = error.problems
    elif isinstance(error, RelayedError) and error.status == 422:
        with suppress(msgspec.DecodeError):
            problems = _refusal.decode(error.body).detail
    place_of = {f"requests.{number}": f"requests.{index}" for number, index in enumerate(indices)}

    def placed(field: str) -> str:
        return _PLACE.sub(lambda found: place_of.get(found[0], found[0]), field)

    return InvalidRequestError([replace(each, field=placed(each.field)) for each in problems]) if problems else error
