"""Asks other servers, over HTTP, for answers about users whom they hold.

A forwarded request has a mark (`MARK`), so the server that receives it never forwards it again, and a marked answer
(`ANSWERED`) is known to be one of ours. Each server is given ``timeout_s``; if it fails, one other that holds the user
is asked. A server that has failed is not asked for a while, and then by one request first: the others need not wait.
It has not failed if it answers at all, whatever it says, or has answered others while one waited for it in vain: one
request must not take it away from all.
One that refuses the mark or the user (421) may be some moments ahead or behind, as while `headrace switch` arrives, so
it has failed only once it has said nothing else for `PATIENCE_S`, and is asked again until then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from serving.errors import NotReadyError, OverloadedError, RelayedError
from serving.users.peers import AVOIDED_S, Peer, in_order
from serving.users.question import ANSWERED, MARK, Question

MAX_TRIES = 2
CONNECT_S, KEPT_OPEN_S = 1.0, 30.0
"""How long a connection may take to be made, and how long it is kept without a request (a server keeps it longer)."""
MOST_CONNECTIONS = 256
"""To one server."""
PATIENCE_S, PAUSE_S = 0.7, 0.05
MAX_ANSWER_BYTES = 64 << 20
PASSED_ON = frozenset({200, 413, 422})
"""What depends on the request alone. Anything else is the fault of the server that said it."""
MISDIRECTED = 421
NEEDED = "one that holds it can be started with serving.partitions, and GET /partitions says who holds what"


@dataclass(frozen=True, slots=True)
class Reply:
    """Another server's answer."""

    status: int
    body: bytes
    retry_after: str


class PeerError(Exception):
    """Why a server did not answer as it should; ``said``: what it said, if anything."""

    def __init__(self, message: str, said: Reply | None = None) -> None:
        super().__init__(message)
        self.said = said

    @property
    def busy(self) -> Reply | None:
        """What it said, if that may be passed on."""
        return self.said if self.said is not None and self.said.status == 503 else None

    @property
    def is_misdirected(self) -> bool:
        """Whether it does not take itself for the right one."""
        return self.said is not None and self.said.status == MISDIRECTED


class _Misdirected(Exception):
    """Nobody has answered, and one of them may in a moment."""


class Forwarder:
    """``mark``: the present value of `MARK`. For the event loop's thread only; `close` before that loop ends."""

    def __init__(self, mark: Callable[[], str], timeout_s: float, max_waiting: int) -> None:
        self._mark, self._timeout_s, self._max_waiting = mark, timeout_s, max_waiting
        self._session: aiohttp.ClientSession | None = None
        self._num_waiting = self.num_forwarded = self.num_failed = self.num_peer_failures = 0

    async def ask(self, what: str, holders: Sequence[Peer], question: Question, *, turn: int, line: str) -> bytes:
        """The body of a holder's answer. ``what``: whose answer it is, for the message; ``turn``: whom to ask first.

        Raises `RelayedError` for a refusal of the request, `OverloadedError` if too many wait for other servers, and
        `NotReadyError` if no holder answers.
        """
        if self._num_waiting >= self._max_waiting:
            raise OverloadedError(f"{self._num_waiting} requests wait for other servers; ask again later")
        self._num_waiting += 1
        self.num_forwarded += 1
        try:
            return await self._first_answer(what, holders, question, turn, line)
        except (NotReadyError, RelayedError) as error:
            self.num_failed += not isinstance(error, RelayedError) or error.status == 503
            raise
        finally:
            self._num_waiting -= 1

    async def _first_answer(
        self, what: str, holders: Sequence[Peer], question: Question, turn: int, line: str
    ) -> bytes:
        while True:
            with suppress(_Misdirected):
                return await self._round(what, holders, question, turn, line)
            await asyncio.sleep(PAUSE_S)

    async def _round(self, what: str, holders: Sequence[Peer], question: Question, turn: int, line: str) -> bytes:
        failures, may_come_right = list[str](), False
        busy: Reply | None = None
        for peer in in_order(holders, turn, line)[:MAX_TRIES]:
            try:
                reply = await self._answer_of(peer, question)
            except PeerError as error:
                self.num_peer_failures += 1
                may_come_right |= error.is_misdirected and not peer.has_failed
                failures.append(f"{peer.name} {error}")
                busy = error.busy or busy
                continue
            if reply.status == 200:
                return reply.body
            raise RelayedError(reply.status, reply.body, {})
        if may_come_right:
            raise _Misdirected
        if busy is not None:
            raise RelayedError(busy.status, busy.body, {"retry-after": busy.retry_after or "1"})
        names = ", ".join(each.name for each in holders)
        why = "; ".join(failures) or (f"{names} failed to, a moment ago" if holders else "no live server holds it")
        raise NotReadyError(f"nobody answers for {what} now: {why}. Ask again later; {NEEDED}", f"a holder of {what}")

    async def _answer_of(self, peer: Peer, question: Question) -> Reply:
        """A server's answer, if it is one to pass on. Raises `PeerError`."""
        asked_s = time.monotonic()
        if peer.has_failed:  # this request finds out for the others
            peer.avoided_until_s = asked_s + self._timeout_s
        try:
            reply = await self._reply(peer, question)
        except PeerError as error:
            now_s = time.monotonic()
            is_there = error.said is not None or peer.answered_s > asked_s
            if error.is_misdirected:
                peer.misdirected_since_s = peer.misdirected_since_s or now_s
                is_there = now_s - peer.misdirected_since_s < PATIENCE_S
            elif error.said is not None:
                peer.answered_s = now_s
            peer.has_failed, peer.avoided_until_s = not is_there, 0.0 if is_there else now_s + AVOIDED_S
            raise
        peer.has_failed, peer.avoided_until_s, peer.misdirected_since_s = False, 0.0, 0.0
        peer.answered_s = time.monotonic()
        return reply

    async def _reply(self, peer: Peer, question: Question) -> Reply:
        try:
            try:
                return await self._send(peer, question)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):  # perhaps one that was kept open too long
                return await self._send(peer, question)
        except TimeoutError:
            raise PeerError(f"did not answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise PeerError(f"cannot be reached at {peer.address} ({type(error).__name__})") from error

    async def _send(self, peer: Peer, question: Question) -> Reply:
        headers = {MARK: self._mark(), "content-type": "application/json"}
        if question.token is not None:
            headers["authorization"] = question.token
        url = peer.address + question.target
        sent = self._client().request(question.method, url, data=question.body or None, headers=headers,
                                      allow_redirects=False)  # fmt: skip
        async with sent as answer:
            if ANSWERED not in answer.headers:
                raise PeerError(f"is not what answers at {peer.address}: status {answer.status}, no {ANSWERED}")
            body = await _body_of(answer)
            reply = Reply(answer.status, body, answer.headers.get("retry-after", ""))
        if reply.status in PASSED_ON:
            return reply
        raise PeerError(_fault(reply), reply)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=MOST_CONNECTIONS, keepalive_timeout=KEPT_OPEN_S),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=min(CONNECT_S, self._timeout_s)),
                cookie_jar=aiohttp.DummyCookieJar(), skip_auto_headers=("accept-encoding", "user-agent"),
            )  # fmt: skip
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def _body_of(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises `PeerError` for one that is too long."""
    pieces, num_bytes = [], 0
    async for piece in answer.content.iter_any():
        pieces.append(piece)
        num_bytes += len(piece)
        if num_bytes > MAX_ANSWER_BYTES:
            raise PeerError(f"sent more than {MAX_ANSWER_BYTES:,} bytes")
    return b"".join(pieces)


def _fault(reply: Reply) -> str:
    said = reply.body[:300].decode(errors="replace")
    if reply.status in (401, 403):
        return "refuses the token that this server accepts; give both the same serving.tokens_file"
    if reply.status == MISDIRECTED:
        return f"does not hold it, or is of another deployment or line: {said}"
    return f"answered {reply.status}: {said}"
