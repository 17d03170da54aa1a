"""Clients that send half of something, too much, the wrong thing in the middle, or do not read: each gets the answers
to what it asked, in order, and none stays."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from random import Random
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

import serving.http.connection
from serving.config import ServingConfig
from serving.http.access import Access
from serving.http.connection import MAX_HEAD_BYTES, PIECE_BYTES, BoundedConnection
from serving.http.gate import Gate
from serving.http.listener import options_of
from serving.metrics import ServerMetrics
from tests.brokers import wait_until
from tests.serving.live import Server, listening

SLOW_S = 0.6
READ_TIMEOUT_S = 0.4
SOON_S = 8.0
LARGE, HUGE_ANSWER = b"x" * 300_000, b"x" * 8_000_000
"""The second is more than the system itself keeps for a client."""


class Toy:
    """Answers with what was asked, and remembers it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        routes = [Route(path, self.answer, methods=["GET", "POST"]) for path in ("/quick", "/slow", "/large", "/huge")]
        # The gate's own time for a body, so that a test can tell it from the connection's for a head.
        app = Starlette(routes=routes)
        self.app = Gate(app, ServerMetrics(list), Access(), max_body_bytes=1000, read_timeout_s=2.0)

    async def answer(self, request: Request) -> Response:
        body = (await request.body()).decode()
        if request.url.path == "/slow":
            await asyncio.sleep(SLOW_S)
        self.done.append(request.url.path + body)
        large = {"/large": LARGE, "/huge": HUGE_ANSWER}.get(request.url.path)
        return Response(large or request.url.path.encode() + body.encode())


@contextmanager
def served(read_timeout_s: float = READ_TIMEOUT_S) -> Iterator[tuple[Toy, Server, int]]:
    toy = Toy()
    with listening(toy.app, ServingConfig(read_timeout_s=read_timeout_s, drain_timeout_s=5.0)) as (server, port):
        yield toy, server, port
        state = server.server_state
        wait_until(lambda: not state.connections and not state.tasks, 20, "every connection to be gone")


def get(path: str = "/quick", more: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{more}\r\n".encode()


def post(body: bytes, path: str = "/quick", *, more: str = "", length: int | None = None) -> bytes:
    return get(path, f"content-length: {len(body) if length is None else length}\r\n{more}", "POST") + body


CHUNKED = "transfer-encoding: chunked\r\n"
CLOSE = "connection: close\r\n"


def talk(port: int, *pieces: bytes | float, ends: bool = False) -> bytes:
    """Send the pieces, with pauses where there is a number; all that comes until the server closes."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=SOON_S)) as client:
        found = b""
        with suppress(ConnectionResetError, BrokenPipeError):
            for each in pieces:
                client.sendall(each) if isinstance(each, bytes) else time.sleep(each)
            if ends:
                client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while piece := client.recv(1 << 20):
                found += piece
        return found


def answers(told: bytes, *methods: str) -> list[tuple[int, bytes]]:
    """Status and body of each answer, parsed as a client does; the methods of the requests if not GET or POST."""
    found: list[tuple[int, bytes]] = []
    while told:
        head, _, told = told.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        assert lines[0].startswith("http/1.1 "), head
        status, fields = int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:])
        length = int(fields.get("content-length", 0)) if status >= 200 else 0
        if len(found) < len(methods) and methods[len(found)] == "HEAD":
            length = 0
        assert len(told) >= length, "a whole body"
        found.append((status, told[:length]))
        told = told[length:]
    return found


def seen(told: bytes) -> list[int | str]:
    """The path of each answer, or its status if it is none of the toy's."""
    return [body.decode() if status == 200 else status for status, body in answers(told)]


GARBAGE = b"\x00nonsense\r\n\r\n"
HUGE = b"GET /quick HTTP/1.1\r\nhost: x\r\ncookie: " + b"c" * (2 * MAX_HEAD_BYTES)
TORN = get("/quick", CHUNKED, "POST") + b"5\r\nhello\r\nzz\r\n"
CONNECT = b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n"
CASES: dict[str, tuple[list[bytes | float], list[int | str]]] = {
    "nonsense alone": ([GARBAGE], [400]),
    "nonsense behind a request that is being answered": ([get("/slow") + GARBAGE], ["/slow", 400]),
    "nonsense behind a request with a body": ([post(b"1", "/slow") + GARBAGE], ["/slow1", 400]),
    "nonsense behind three": ([get("/slow") + get() + post(b"2") + GARBAGE], ["/slow", "/quick", "/quick2", 400]),
    "nonsense between two": ([get("/slow") + GARBAGE + get()], ["/slow", 400]),
    "nonsense behind one that closes": ([get("/slow", CLOSE) + GARBAGE], ["/slow"]),
    "nonsense later": ([get("/slow"), 0.2, GARBAGE], ["/slow", 400]),
    "nonsense afterwards": ([get(), 0.2, GARBAGE], ["/quick", 400]),
    "half a head": ([b"GET /qu"], [408]),
    "nothing": ([], [408]),
    "half a head behind a slow one": ([get("/slow") + b"GET /qu"], ["/slow", 408]),
    "half a head behind two": ([get("/slow") + get() + b"GET /qu"], ["/slow", "/quick", 408]),
    "half a head, then the rest in time": ([get("/slow") + b"GET /qu", 0.2, get(more=CLOSE)[7:]], ["/slow", "/quick"]),
    "a huge head": ([HUGE], [431]),
    "a huge head behind a slow one": ([get("/slow") + HUGE], ["/slow", 431]),
    "a torn chunk": ([TORN], [400]),
    "a torn chunk behind a slow one": ([get("/slow") + TORN], ["/slow", 400]),
    "a torn chunk behind two": ([get("/slow") + get() + TORN], ["/slow", "/quick", 400]),
    "a torn chunk behind a slow one, later": ([get("/slow") + TORN[:-4], 0.2, TORN[-4:]], ["/slow", 400]),
    "a slow body": ([post(b"1", length=9)], [408]),
    "a slow body behind a slow one": ([get("/slow") + post(b"1", length=9)], ["/slow", 408]),
    "a body that is too large": ([post(b"", length=99_999)], [413]),
    "a torn chunk of one that is refused": (
        [get("/quick", CHUNKED, "POST") + b"fff\r\n" + b"x" * 4095, 0.2, b"\r\nzz\r\n"], [413],
    ),
    "a proxy's request behind a slow one": ([get("/slow") + CONNECT], ["/slow", 400]),
    "an offer of HTTP/2 behind a slow one": (
        [get("/slow") + post(b"1", more="connection: upgrade, close\r\nupgrade: h2c\r\n")], ["/slow", "/quick1"],
    ),
    "a request of HTTP/1.0 behind a slow one": ([get("/slow") + b"GET /quick HTTP/1.0\r\n\r\n"], ["/slow", "/quick"]),
    "GET with a body, byte by byte": (
        [get("/slow", "content-length: 3\r\n"), b"a", 0.1, b"b", 0.1, b"c" + get(more=CLOSE)], ["/slowabc", "/quick"],
    ),
    "a request byte by byte": (
        [bytes([each]) for each in post(b"12", more=CLOSE)], ["/quick12"],
    ),
    "more than a piece behind a slow one": (
        [get("/slow") + get() * (2 * PIECE_BYTES // len(get())) + GARBAGE],
        ["/slow", *["/quick"] * (2 * PIECE_BYTES // len(get())), 400],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def toy() -> Iterator[tuple[Toy, Server, int]]:
    with served() as found:
        yield found


@pytest.mark.parametrize("what", CASES)
def test_each_answer_stands_in_the_place_of_what_it_answers(toy: tuple[Toy, Server, int], what: str) -> None:
    pieces, expected = CASES[what]
    assert seen(talk(toy[2], *pieces)) == expected


@pytest.mark.parametrize(
    ("sent", "expected", "carried_out"),
    [
        (get("/slow") + post(b"1", length=9), ["/slow"], ["/slow"]),
        (get("/slow") + get() + b"GET /qu", ["/slow", "/quick"], ["/slow", "/quick"]),
        (get("/slow") + GARBAGE, ["/slow", 400], ["/slow"]),
        (post(b"1", length=9), [], []),
        (get("/quick", CHUNKED, "POST") + b"1\r\n1\r\n", [], []),
    ],
)
def test_a_client_that_ends_in_the_middle_gets_the_answers_before_that(
    sent: bytes, expected: list[int | str], carried_out: list[str]
) -> None:
    """What never came whole is not carried out either."""
    with served() as (toy, _, port):
        assert seen(talk(port, sent, ends=True)) == expected
    assert toy.done == carried_out


def test_a_client_that_goes_before_its_body_is_whole_had_nothing_carried_out() -> None:
    with served() as (toy, server, port):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(post(b"{}", length=9))
        wait_until(lambda: bool(server.server_state.tasks), 20, "the request to begin")
        client.close()
        wait_until(lambda: not server.server_state.tasks, 20, "it to end")
    assert toy.done == []


def test_what_has_no_body_has_none_and_what_waits_for_100_gets_it_in_its_place(toy: tuple[Toy, Server, int]) -> None:
    port = toy[2]
    told = talk(port, get("/large", method="HEAD") + get("/quick", CLOSE))
    assert answers(told, "HEAD") == [(200, b""), (200, b"/quick")]
    expecting = "expect: 100-continue\r\n" + CLOSE
    told = talk(port, get("/slow") + post(b"", length=2, more=expecting), SLOW_S + 0.3, b"12")
    assert answers(told) == [(200, b"/slow"), (100, b""), (200, b"/quick12")]
    assert [each for each, _ in answers(talk(port, post(b"", length=2000, more=expecting)))] == [413]
    old = b"POST /quick HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    assert answers(talk(port, old, 0.2, b"12")) == [(200, b"/quick12")]


def test_the_clock_of_a_head_stands_while_the_server_does_not_read() -> None:
    """The rest of it may have come long ago."""
    with served() as (_, _, port):
        told = talk(port, get("/slow") * 2 + get("/quick", f"a: {'b' * PIECE_BYTES}\r\n{CLOSE}"))
    assert seen(told) == ["/slow", "/slow", "/quick"]


def without_reading(port: int, sent: bytes) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    with suppress(BlockingIOError):
        client.send(sent)
    return client


@contextmanager
def clients_that_do_not_read(port: int) -> Iterator[None]:
    with ExitStack() as stack:
        for sent in (get("/large") * 60, get("/huge", CLOSE), get("/huge") + GARBAGE, get("/huge") + b"GET /q"):
            for _ in range(3):
                stack.enter_context(closing(without_reading(port, sent)))
        yield


def test_clients_that_read_nothing_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.http.connection, "STALLED_S", 1.5)
    with served() as (_, server, port), clients_that_do_not_read(port):
        wait_until(lambda: len(server.server_state.connections) > 5, 20, "them to be there")
        assert seen(talk(port, get(more=CLOSE))) == ["/quick"]
        wait_until(lambda: not server.server_state.connections, 30, "them to be gone")
        wait_until(lambda: not server.server_state.tasks, 30, "their requests to end")


def test_a_client_that_reads_slowly_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.http.connection, "STALLED_S", 1.5)
    with served() as (_, _, port), closing(without_reading(port, get("/large") * 9 + get("/large", CLOSE))) as client:
        client.setblocking(True)
        num, began_s = 0, time.monotonic()
        while piece := client.recv(50_000 if num < 2_000_000 else 1 << 20):
            num += len(piece)
            time.sleep(0.03 if num < 2_000_000 else 0)
        assert time.monotonic() - began_s > 2 * 1.5, "longer than one that stands still may take"
    assert num > 10 * len(LARGE)


def test_a_connection_that_never_looks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.http.connection, "STALLED_S", 1.5)
    monkeypatch.setattr(BoundedConnection, "drop_if_stalled", lambda *_: None)
    toy = Toy()
    config = ServingConfig(read_timeout_s=READ_TIMEOUT_S, drain_timeout_s=1.0)
    with listening(toy.app, config) as (server, port), clients_that_do_not_read(port):
        time.sleep(4.0)
        assert len(server.server_state.connections) > 5


class Backlog:
    """A transport whose client takes what the test says."""

    def __init__(self) -> None:
        self.num_waiting, self.is_aborted = 0, False

    def write(self, data: bytes) -> None:
        self.num_waiting += len(data)

    def get_write_buffer_size(self) -> int:
        return self.num_waiting

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def get_extra_info(self, name: str) -> Any:
        return socket.socket() if name == "socket" else None

    def resume_reading(self) -> None: ...


def seconds_of_a_stream(taken_per_s: int) -> int:
    """After how many seconds a stream ends that writes 1,000 bytes in each; 100 if it does not."""

    async def follow() -> int:
        written = asyncio.Queue[bytes]()

        async def stream(_scope: Any, _receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": await written.get(), "more_body": True})

        transport, config = Backlog(), options_of(stream, ServingConfig())
        config.load()
        connection = BoundedConnection(config, ServerState(), {}, asyncio.get_running_loop())
        connection.connection_made(transport)
        connection.data_received(get())
        began_s = connection.loop.time()
        for second in range(100):
            written.put_nowait(b"x" * 1000)
            await asyncio.sleep(0.001)
            assert transport.num_waiting > 0
            transport.num_waiting -= min(taken_per_s, transport.num_waiting - 1)
            connection.drop_if_stalled(began_s + second)
            if transport.is_aborted:
                return second
        return 100

    return asyncio.run(follow())


def test_a_client_that_reads_more_slowly_than_a_stream_is_written_is_not_taken_for_one_that_stands_still() -> None:
    assert seconds_of_a_stream(900) == 100
    assert 30 <= seconds_of_a_stream(0) <= 33


def test_what_a_client_still_sends_does_not_cost_it_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is closed while there is something to be read is reset, and what was on its way is lost."""
    monkeypatch.setattr(serving.http.connection, "LINGER_S", 1.0)
    cases = [(get("/large", CLOSE), [LARGE.decode()]), (get("/large") + GARBAGE, [LARGE.decode(), 400])]
    with served() as (_, _, port):
        for sent, expected in cases:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            with closing(client):
                client.settimeout(SOON_S)
                client.sendall(sent + b"x" * 200_000)
                time.sleep(0.3)
                found = b""
                while piece := client.recv(4096):
                    found += piece
            assert seen(found) == expected


def num_held_after_resets() -> int:
    """How many of 20 connections that were reset while they were kept alive are still in memory."""
    with served() as (_, server, port):
        for _ in range(20):
            with closing(socket.create_connection(("127.0.0.1", port), timeout=SOON_S)) as client:
                client.sendall(get())
                while not client.recv(4096).endswith(b"/quick"):
                    ...
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: not server.server_state.connections, 20, "them to be gone")
        gc.collect()
        return sum(issubclass(type(each), BoundedConnection) for each in gc.get_objects())


def test_a_connection_that_is_reset_is_not_held_until_its_time_to_be_kept_is_over() -> None:
    assert num_held_after_resets() < 10


def test_a_clock_that_holds_connections_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "connection_lost", HttpToolsProtocol.connection_lost)
    assert num_held_after_resets() >= 20


def at_once(self: BoundedConnection, word: bytes) -> None:
    self._close(word)


def test_a_connection_that_closes_at_once_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "_linger", lambda self: self.transport.close())
    with pytest.raises((AssertionError, ConnectionResetError)):
        test_what_a_client_still_sends_does_not_cost_it_the_answers(monkeypatch)


def early(self: BoundedConnection) -> None:
    if not self._is_ending():
        self._end(b"HTTP/1.1 408 Request Timeout\r\n\r\n")


@pytest.mark.parametrize(
    ("name", "broken", "what"),
    [
        ("_end", at_once, "nonsense behind a request that is being answered"),
        ("_end", at_once, "half a head behind a slow one"),
    ],
)
def test_a_refusal_out_of_its_place_is_caught(
    name: str, broken: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedConnection, name, broken)
    toy = Toy()
    pieces, expected = CASES[what]
    config = ServingConfig(read_timeout_s=READ_TIMEOUT_S, drain_timeout_s=1.0)
    with listening(toy.app, config) as (_, port), suppress(TimeoutError):
        assert seen(talk(port, *pieces)) != expected


def test_a_clock_that_does_not_stand_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "_expire", early)
    with pytest.raises(AssertionError):
        test_the_clock_of_a_head_stands_while_the_server_does_not_read()


def test_draining_answers_all_that_was_taken() -> None:
    """Whatever a client has pipelined: it gets a prefix of the answers, whole, and what was carried out is in it."""
    with served() as (toy, server, port):
        told: list[bytes] = []
        sent = [
            get("/slow"), get("/slow") + post(b"2"), get("/slow") + GARBAGE, get("/slow") + post(b"1", length=9),
            get("/slow") + get("/large"), post(b"3", "/slow") * 3,
        ]  # fmt: skip
        clients = [threading.Thread(target=lambda each=each: told.append(talk(port, each))) for each in sent]
        for client in clients:
            client.start()
        wait_until(lambda: len(server.server_state.tasks) == len(sent), 20, "all to be running")
        server.should_exit = True
        for client in clients:
            client.join(20)
    found = [answers(each) for each in told]
    assert len(found) == len(sent)
    assert all(each and each[0][0] == 200 for each in found)
    num_told = sum(status == 200 for each in found for status, _ in each)
    assert num_told == len(toy.done), "each that was carried out was answered"


def drawn(random: Random) -> tuple[list[bytes], list[int | str]]:
    """Requests that a client sends without waiting, and the answers to them."""
    sent, expected = list[bytes](), list[int | str]()
    for _ in range(random.randrange(1, 12)):
        path, tag = random.choice(("/quick", "/slow")), str(random.randrange(1000))
        more = CLOSE if random.random() < 0.1 else ""
        chunks = "".join(f"1\r\n{each}\r\n" for each in tag) + random.choice(("0\r\n\r\n", "0\r\nx: y\r\n\r\n"))
        one, answer = random.choice([
            (get(path, more), path),
            (get(path, f"cookie: {'c' * random.randrange(3000)}\r\n{more}"), path),
            (b"\r\n" + get(path, more), path),
            (get("/large", more), LARGE.decode()),
            (post(tag.encode(), path, more=more), path + tag),
            (get(path, CHUNKED + more, "POST") + chunks.encode(), path + tag),
            (post(b"x" * random.randrange(1001, 5000), path, more=more), 413),
        ])  # fmt: skip
        sent.append(one)
        expected.append(answer)
        if more or answer == 413:
            return [*sent, random.choice((b"", GARBAGE, get()))], expected
    end, last = random.choice(
        [(GARBAGE, 400), (b"GET /qui", 408), (TORN, 400), (CONNECT, 400), (get("/quick", CLOSE), "/quick")]
    )
    return [*sent, end], [*expected, last]


def torn(random: Random, data: bytes) -> list[bytes | float]:
    """The bytes in pieces, with pauses between some."""
    pieces: list[bytes | float] = []
    while data:
        num = random.choice((1, 7, 50, 400, PIECE_BYTES, 5000, 1 << 20)) if len(pieces) < 60 else len(data)
        pieces.append(data[:num])
        data = data[num:]
        if random.random() < 0.3:
            pieces.append(random.choice((0.001, 0.01, 0.05)))
    return pieces


def misjudged(port: int, seed: int) -> str:
    """What a client got instead of what it should have got; empty if it got that."""
    random = Random(seed)
    sent, expected = drawn(random)
    found = seen(talk(port, *torn(random, b"".join(sent))))
    told = [str(each)[:9] for each in found], [str(each)[:9] for each in expected]
    return "" if found == expected else f"{seed}: got {told[0]}, expected {told[1]}"


def misjudged_of_many(monkeypatch: pytest.MonkeyPatch, num: int) -> list[str]:
    monkeypatch.setattr("tests.serving.test_connection.SLOW_S", 0.03)
    with served(3.0) as (_, _, port), ThreadPoolExecutor(16) as pool:
        return [each for each in pool.map(lambda seed: misjudged(port, seed), range(num)) if each]


def test_whatever_clients_send_ahead_and_however_torn_each_gets_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert misjudged_of_many(monkeypatch, 200) == []


def test_clients_that_are_drawn_catch_refusals_out_of_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "_end", at_once)
    assert len(misjudged_of_many(monkeypatch, 60)) > 5
