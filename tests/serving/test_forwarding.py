"""What a server does with the answers of others, and with those that do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

import serving.users.forwarding
from serving.errors import NotReadyError, OverloadedError, RelayedError
from serving.users.forwarding import Forwarder
from serving.users.peers import Peer
from serving.users.question import ANSWERED, MARK, Question

QUESTION = Question("POST", "/recommend?x=1", b'{"user": 1}', "Bearer token")
Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


def told(status: int = 200, body: str = "{}", **headers: str) -> web.Response:
    """An answer as our servers give it."""
    return web.Response(status=status, text=body, headers={ANSWERED: "a server", **headers})


@asynccontextmanager
async def peer(name: str, handle: Handle) -> AsyncIterator[Peer]:
    """A server that answers so."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    (address,) = (f"http://127.0.0.1:{port}" for _, port in runner.addresses)
    try:
        yield Peer(name, address, frozenset({0}), 4, "", 0.0)
    finally:
        await runner.cleanup()


def asked(*handles: Handle, num: int = 1, timeout_s: float = 5.0, max_waiting: int = 10) -> list[Any]:
    """What comes of asking servers that answer so, ``num`` times: bodies and errors, and the forwarder at the end."""

    async def ask() -> list[Any]:
        forwarder, found = Forwarder(lambda: "headrace 4", timeout_s, max_waiting), list[Any]()
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(peer(f"s{n}", each)) for n, each in enumerate(handles)]
            for _ in range(num):
                try:
                    found.append(await forwarder.ask("partition 0", peers, QUESTION, turn=0, line=""))
                except (NotReadyError, OverloadedError, RelayedError) as error:
                    found.append(error)
            await forwarder.close()
        return [*found, forwarder]

    return asyncio.run(ask())


def in_turn(*answers: Callable[[], web.StreamResponse]) -> Handle:
    """One after the other, the last one again and again."""
    left = list(answers)

    async def handle(_: web.Request) -> web.StreamResponse:
        return (left.pop(0) if len(left) > 1 else left[0])()

    return handle


def test_a_request_goes_along_with_its_query_body_mark_and_token() -> None:
    seen = list[Any]()

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = request.headers
        seen.append((request.method, request.raw_path, await request.read(), headers[MARK], headers["authorization"]))
        return told(body="answer")

    body, forwarder = asked(handle)
    assert body == b"answer"
    assert seen == [("POST", "/recommend?x=1", b'{"user": 1}', "headrace 4", "Bearer token")]
    assert (forwarder.num_forwarded, forwarder.num_failed, forwarder.num_peer_failures) == (1, 0, 0)


@pytest.mark.parametrize(
    ("status", "says"),
    [(421, "s0 does not hold it"), (401, "s0 refuses the token"), (500, "s0 answered 500"), (404, "s0 answered 404")],
)
def test_where_one_does_not_answer_as_it_should_another_is_asked(status: int, says: str) -> None:
    body, forwarder = asked(in_turn(lambda: told(status)), in_turn(lambda: told(body="second")))
    assert body == b"second"
    assert (forwarder.num_failed, forwarder.num_peer_failures) == (0, 1)
    error, forwarder = asked(in_turn(lambda: told(status)))
    assert says in str(error)
    assert forwarder.num_failed == 1
    assert (forwarder.num_peer_failures > 1) == (status == 421)


def test_a_server_that_is_some_moments_ahead_or_behind_is_asked_again_and_not_avoided() -> None:
    """Two servers read an order to switch to another line one after the other."""
    behind = in_turn(lambda: told(421), lambda: told(421), lambda: told(body="first"), lambda: told(body="later"))
    first, later, forwarder = asked(behind, num=2)
    assert (first, later) == (b"first", b"later")
    assert (forwarder.num_failed, forwarder.num_peer_failures) == (0, 2)


def test_one_that_stays_the_wrong_one_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.users.forwarding.PATIENCE_S", 0.2)
    wrong = in_turn(lambda: told(421))
    first, second, forwarder = asked(wrong, num=2)
    assert "does not hold it" in str(first)
    assert "failed to, a moment ago" in str(second)
    assert 1 < forwarder.num_peer_failures < 10
    monkeypatch.setattr("serving.users.forwarding.PATIENCE_S", 0.0)  # beside another one too
    *bodies, forwarder = asked(wrong, in_turn(lambda: told(body="another")), num=9)
    assert bodies == [b"another"] * 9
    assert forwarder.num_peer_failures == 1


def test_no_more_than_two_are_asked() -> None:
    counts = [0, 0, 0]

    def counting(at: int) -> Handle:
        async def handle(_: web.Request) -> web.StreamResponse:
            counts[at] += 1
            return told(500)

        return handle

    error, _ = asked(*(counting(at) for at in range(3)))
    assert isinstance(error, NotReadyError)
    assert counts == [1, 1, 0]


@pytest.mark.parametrize("status", [413, 422])
def test_a_refusal_of_the_request_is_passed_on_and_nobody_else_is_asked(status: int) -> None:
    error, forwarder = asked(in_turn(lambda: told(status, "why")), in_turn(told))
    assert (error.status, error.body) == (status, b"why")
    assert forwarder.num_failed == 0


def test_a_server_that_has_too_much_to_do_says_when_to_ask_again_unless_another_answers() -> None:
    busy = in_turn(lambda: told(503, "busy", **{"retry-after": "7"}))
    error, forwarder = asked(busy)
    assert (error.status, error.body, error.headers) == (503, b"busy", {"retry-after": "7"})
    assert forwarder.num_failed == 1
    assert asked(busy, in_turn(lambda: told(body="second")))[0] == b"second"


def test_an_answer_of_something_else_is_not_passed_on() -> None:
    error, _ = asked(in_turn(lambda: web.Response(text="{}")))
    assert "is not what answers at" in str(error)
    error, _ = asked(in_turn(lambda: web.Response(status=302, headers={"location": "http://127.0.0.1:1/"})))
    assert "is not what answers at" in str(error), "it is not followed"


def test_an_answer_that_is_too_long_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.users.forwarding, "MAX_ANSWER_BYTES", 1000)
    assert asked(in_turn(lambda: told(body="x" * 1000)))[0] == b"x" * 1000
    assert "sent more than 1,000 bytes" in str(asked(in_turn(lambda: told(body="x" * 1001)))[0])


def test_a_server_that_failed_is_avoided_and_one_request_finds_out_whether_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = in_turn(lambda: web.Response(status=502), lambda: told(body="again"))
    first, second, _ = asked(handle, num=2)
    assert "is not what answers at" in str(first)
    assert "s0 failed to, a moment ago" in str(second)
    monkeypatch.setattr(serving.users.forwarding, "AVOIDED_S", 0.0)
    handle = in_turn(lambda: web.Response(status=502), lambda: told(body="again"))
    assert asked(handle, num=3)[1:3] == [b"again", b"again"]


def test_a_server_that_answers_that_it_is_busy_after_it_failed_is_asked_by_all_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving.users.forwarding, "AVOIDED_S", 0.0)

    def say_busy() -> web.Response:
        monkeypatch.setattr(serving.users.forwarding, "AVOIDED_S", 60.0)  # for this answer
        return told(503, "busy")

    handle = in_turn(lambda: web.Response(status=502), say_busy, lambda: told(body="again"))
    _, busy, third, _ = asked(handle, num=3)
    assert busy.body == b"busy"
    assert third == b"again"


def test_a_server_that_does_not_answer_in_time_is_given_up() -> None:
    async def handle(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return told()

    error, _ = asked(handle, timeout_s=0.2)
    assert "s0 did not answer within 0.2 s" in str(error)


@pytest.mark.parametrize("status", [404, 401, 500])
def test_a_server_that_answers_one_request_so_is_asked_the_next_one(status: int) -> None:
    """Such as one without a page, which is asked for a user's history by a page that is open elsewhere."""
    first, second, _ = asked(in_turn(lambda: told(status), lambda: told(body="second")), num=2)
    assert isinstance(first, NotReadyError)
    assert second == b"second"


@pytest.mark.parametrize("answers_others", [True, False])
def test_a_request_that_takes_too_long_takes_nobody_away_from_those_that_are_answered(answers_others: bool) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/explain" or not answers_others:
            await asyncio.sleep(30)
        return told(body="answer")

    async def ask() -> None:
        forwarder = Forwarder(lambda: "headrace 4", 0.4, 10)
        async with peer("s0", handle) as one:
            slow = asyncio.create_task(forwarder.ask(
                "partition 0", [one], Question("POST", "/explain", b"", None), turn=0, line=""
            ))  # fmt: skip
            await asyncio.sleep(0.2)
            if answers_others:
                assert await forwarder.ask("partition 0", [one], QUESTION, turn=0, line="") == b"answer"
            with pytest.raises(NotReadyError, match=r"did not answer within 0\.4 s"):
                await slow
            assert one.has_failed == (not answers_others)
            await forwarder.close()

    asyncio.run(ask())


def test_a_connection_that_was_kept_too_long_is_made_anew() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.transport is not None and not seen:
            request.transport.close()
        seen.append(1)
        return told(body="answer")

    seen = list[int]()
    assert asked(handle)[0] == b"answer"
    assert len(seen) == 2


def test_no_more_than_so_many_wait_for_others() -> None:
    error, forwarder = asked(in_turn(told), max_waiting=0)
    assert isinstance(error, OverloadedError)
    assert forwarder.num_forwarded == 0
    assert asked(in_turn(lambda: told(500), told), in_turn(told), num=5, max_waiting=1)[:5] == [b"{}"] * 5, (
        "one that has ended waits no more"
    )
