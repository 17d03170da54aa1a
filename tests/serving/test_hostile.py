"""What reaches a server before it is a request: half a protocol, another one, two requests in one, a client that has
gone. It is answered or refused, nothing is taken for something else, and little of it is logged."""

from __future__ import annotations

import gzip
import logging
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.http.connection import PIECE_BYTES, BoundedConnection
from serving.http.listener import options_of
from tests.brokers import wait_until
from tests.serving.live import live_server
from wire.thinned_log import NUM_LOGGED

SOON_S = 5.0
BODY = b'{"user": "u1", "k": 2}'
CHUNKED, CLOSE = b"transfer-encoding: chunked\r\n", b"connection: close\r\n"
UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
"""What Java's own client sends with its first request."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with live_server(read_timeout_s=1.0) as (_, port):
        yield port


def request(
    path: bytes = b"/recommend", body: bytes = BODY, *, method: bytes = b"POST", version: bytes = b"HTTP/1.1",
    more: bytes = CLOSE, length: bytes | None = None, kind: bytes = b"application/json",
) -> bytes:  # fmt: skip
    """A request as bytes. ``length``: its Content-Length, if not that of the body; empty: none."""
    head = b"%s %s %s\r\nhost: x\r\ncontent-type: %s\r\n" % (method, path, version, kind)
    if length != b"":
        head += b"content-length: %s\r\n" % (b"%d" % len(body) if length is None else length)
    return head + more + b"\r\n" + body


def get(path: bytes, more: bytes = CLOSE) -> bytes:
    return request(path, b"", method=b"GET", length=b"", more=more)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks) + end


def answer(port: int, sent: bytes, *, half_closed: bool = False, until: bytes = b"") -> bytes:
    """What the server answers until it closes, or until these bytes have come."""
    found = b""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=SOON_S)) as connection:
        connection.sendall(sent)
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        try:
            while (piece := connection.recv(65536)) and not (until and until in found + piece):
                found += piece
        except ConnectionResetError:
            return found
        return found + piece


def statuses(told: bytes) -> list[int]:
    return [int(each[:3]) for each in told.split(b"HTTP/1.1 ")[1:]]


SMUGGLED = get(b"/version")
REQUESTS: dict[str, tuple[bytes, list[int]]] = {
    "length and chunks": (request(body=chunked(BODY), more=CHUNKED), [400]),
    "a request behind a length that is too small": (
        request(body=chunked(BODY) + SMUGGLED, length=b"4", more=CHUNKED), [400],
    ),
    "two lengths": (request(more=b"content-length: 3\r\n"), [400]),
    "a list of lengths": (request(length=b"22, 22"), [400]),
    "a length with a sign": (request(length=b"+22"), [400]),
    "a length below zero": (request(length=b"-1"), [400]),
    "a length that overflows": (request(length=b"18446744073709551638"), [400]),
    "a space after a header's name": (request(length=b"", more=b"content-length : 22\r\n"), [400]),
    "an unknown coding": (request(length=b"", more=b"transfer-encoding: xchunked\r\n", body=chunked(BODY)), [400]),
    "chunked twice": (request(length=b"", more=CHUNKED + CHUNKED, body=chunked(BODY)), [400]),
    "a chunk that overflows": (request(length=b"", more=CHUNKED, body=b"f" * 20 + b"\r\n" + BODY), [400]),
    "a chunk below zero": (request(length=b"", more=CHUNKED, body=b"-1\r\n" + BODY), [400]),
    "chunks": (request(length=b"", more=CHUNKED + CLOSE, body=chunked(BODY[:9], BODY[9:])), [200]),
    "trailers": (request(length=b"", more=CHUNKED + CLOSE, body=chunked(BODY, end=b"0\r\na: b\r\n\r\n")), [200]),
    "endless trailers": (
        request(length=b"", more=CHUNKED, body=chunked(BODY, end=b"0\r\na: " + b"b" * 300_000)), [431],
    ),
    "no chunk": (request(length=b"", more=CHUNKED + CLOSE, body=b"0\r\n\r\n"), [422]),
    "bare line feeds": (request().replace(b"\r\n", b"\n"), [400]),
    "a null in a header": (request(more=b"a: b\0c\r\n"), [400]),
    "a folded header": (request(more=b"a: b\r\n c\r\n"), [400]),
    "a header without a colon": (request(more=b"nonsense\r\n"), [400]),
    "3,000 headers": (request(more=b"".join(b"a%d: b\r\n" % n for n in range(3000)) + CLOSE), [200]),
    "a path in UTF-8": (request("/récommend".encode()), [400]),
    "a path with a space": (request(b"/recommend x"), [400]),
    "a path with a null": (request(b"/recommend%00"), [404]),
    "a path to elsewhere": (get(b"/page/..%2f..%2fetc%2fpasswd"), [404]),
    "another host's path": (request(b"//elsewhere/recommend"), [404]),
    "HTTP/1.0": (request(version=b"HTTP/1.0", more=b""), [200]),
    "HTTP/1.0, kept alive": (request(version=b"HTTP/1.0", more=b"connection: keep-alive\r\n"), [200]),
    "HTTP/9.9": (request(version=b"HTTP/9.9"), [400]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "TLS": (bytes.fromhex("16030100a5010000a10303") + bytes(160), [400]),
    "a proxy's request": (b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: elsewhere\r\n\r\n", [400]),
    "a method in lower case": (request(method=b"post"), [400]),
    "TRACE": (request(method=b"TRACE"), [405]),
    "a body with GET": (request(b"/healthz", method=b"GET"), [200]),
    "empty lines first": (b"\r\n\r\n\r\n" + request(), [200]),
    "three at once": (request(more=b"") + get(b"/version", b"") + request(), [200, 200, 200]),
    "500 at once": (get(b"/healthz", b"") * 499 + get(b"/healthz"), [200] * 500),
    "one after the last": (request() + request(), [200]),
    "expecting 100": (request(more=b"expect: 100-continue\r\n" + CLOSE), [100, 200]),
    "compressed": (request(body=gzip.compress(b"[" * 10_000_000), more=b"content-encoding: gzip\r\n" + CLOSE), [415]),
    "explicitly uncompressed": (request(more=b"content-encoding: identity\r\n" + CLOSE), [200]),
    "UTF-16": (request(body=BODY.decode().encode("utf-16"), kind=b"application/json; charset=utf-16"), [422]),
    "a form": (request(kind=b"application/x-www-form-urlencoded"), [415]),
    "a number of 400 digits": (request(body=b'{"user": "u1", "k": 1' + b"0" * 400 + b"}"), [422]),
    "a value beyond float32": (
        request(body=b'{"history": [{"item": 1, "action": "view", "timestamp": 1, "value": 1e39}]}'), [422],
    ),
    "a value beyond float64": (
        request(body=b'{"history": [{"item": 1, "action": "view", "timestamp": 1, "value": 1e400}]}'), [422],
    ),
    "Latin-1 behind another mistake": (request(body=b'{"k": 0, "user": "\xe9t\xe9"}'), [422]),
    "Latin-1 in an unknown field": (request(b"/rank", b'{"user": "a", "items": [], "x": "\xff"}'), [422]),
    "Latin-1 behind a wrong type": (request(b"/items", b'{"items": [true, "\xe9"]}'), [422]),
    "two documents": (request(body=BODY + BODY), [422]),
}  # fmt: skip


@pytest.mark.parametrize("what", REQUESTS)
def test_whatever_comes_is_answered_or_refused_as_what_it_is(port: int, what: str) -> None:
    sent, expected = REQUESTS[what]
    told = answer(port, sent)
    assert statuses(told) == expected
    assert len(told) < 100_000
    if expected[0] >= 400 and expected != [431]:
        assert b'"detail":[{' in told, "every refusal says what is wrong"
    assert statuses(answer(port, get(b"/healthz"))) == [200]


def test_a_request_that_offers_another_protocol_is_answered_in_this_one(port: int) -> None:
    told = answer(port, request(more=UPGRADE) + get(b"/healthz"), until=b'{"status"')
    assert statuses(told) == [200, 200]
    assert b'"num_history"' in told
    pieces = request(length=b"", more=UPGRADE + CHUNKED, body=chunked(BODY)) + get(b"/healthz")
    assert statuses(answer(port, pieces, until=b'{"status"')) == [200, 200]


def test_a_client_that_has_finished_sending_gets_its_answers(port: int) -> None:
    assert statuses(answer(port, request(more=b""), half_closed=True)) == [200]
    assert statuses(answer(port, request(more=b"") * 3, half_closed=True)) == [200] * 3
    assert statuses(answer(port, request(more=b"")[:-5], half_closed=True)) == [], "it never sent a whole request"


def test_a_stream_ends_with_its_client(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=SOON_S)) as connection:
        connection.sendall(get(b"/events", b""))
        found = b""
        while b"event: points" not in found:
            found += connection.recv(65536)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def test_uvicorns_own_connection_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(*args: Any) -> Any:
        options = options_of(*args)
        options.http = HttpToolsProtocol
        return options

    monkeypatch.setattr("tests.serving.live.options_of", plain)
    with live_server() as (_, port):
        assert statuses(answer(port, request(more=b""), half_closed=True)) != [200]
        assert statuses(answer(port, request(more=UPGRADE), until=b"}")) == [422]


def test_what_anybody_can_cause_is_logged_a_few_times(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(3 * NUM_LOGGED):
            assert statuses(answer(port, b"\x16\x03\x01\x00\xa5")) == [400]
    assert len(caplog.records) <= NUM_LOGGED


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths of the requests that the server has parsed so far."""
    found: list[bytes] = []
    complete = BoundedConnection.on_headers_complete

    def note(self: BoundedConnection) -> None:
        found.append(self.url)
        complete(self)

    monkeypatch.setattr(BoundedConnection, "on_headers_complete", note)
    return found


def sent_until_it_is_full(port: int) -> socket.socket:
    """A connection whose client has sent as many requests as it could, and reads nothing."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=SOON_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.setblocking(False)
    block = memoryview(get(b"/openapi.json", b"") * 200)
    try:
        while True:
            block = block[connection.send(block) :] or memoryview(get(b"/openapi.json", b"") * 200)
    except BlockingIOError:
        return connection


def test_requests_that_nobody_waits_for_are_not_parsed_ahead_of_their_answers(port: int, parsed: list[bytes]) -> None:
    """Parsed at once, those that ten clients can send took half a minute, in which nobody else was answered, and
    600 MB."""
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(closing(sent_until_it_is_full(port)))
        for _ in range(5):
            assert statuses(answer(port, get(b"/healthz"))) == [200]
        assert parsed.count(b"/openapi.json") < 10 * (PIECE_BYTES // len(get(b"/openapi.json", b"")) + 100)


def test_requests_are_answered_however_many_are_sent_at_once(port: int) -> None:
    sent = (request(more=b"") + get(b"/version", b"")) * 400
    assert statuses(answer(port, sent + get(b"/healthz"))) == [200] * 801
    assert statuses(answer(port, sent, half_closed=True)) == [200] * 800


def test_a_request_whose_end_comes_after_the_answers_before_it_is_answered(port: int) -> None:
    one = get(b"/healthz", b"cookie: " + b"c" * 900 + b"\r\n")
    sent = one * 2 + get(b"/healthz")
    cut = 2 * len(one) + 30
    for ahead in (cut, PIECE_BYTES + 10, PIECE_BYTES - 10):
        with closing(socket.create_connection(("127.0.0.1", port), timeout=SOON_S)) as connection:
            connection.sendall(sent[:ahead])
            found = b""
            while found.count(b"HTTP/1.1 ") < 2 - (ahead < 2 * len(one)):
                found += connection.recv(65536)
            connection.sendall(sent[ahead:])
            while piece := connection.recv(65536):
                found += piece
        assert statuses(found) == [200] * 3


@pytest.mark.parametrize("rest", [b"\r\n", b"x"])
def test_a_connection_whose_client_has_sent_what_is_no_request_ends(
    port: int, rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = BoundedConnection.connection_made

    def soon(self: BoundedConnection, transport: Any) -> None:
        self.timeout_keep_alive = 1
        made(self, transport)

    monkeypatch.setattr(BoundedConnection, "connection_made", soon)
    one = get(b"/healthz", b"")
    more = b"content-length: 100\r\n" if rest == b"x" else b""
    num_missing = PIECE_BYTES - len(one) - len(get(b"/healthz", b"a: \r\n" + more))
    padded = get(b"/healthz", b"a: " + b"b" * num_missing + b"\r\n" + more)
    for sent in (get(b"/healthz", more), one + padded):
        with closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as connection:
            connection.sendall(sent + rest)
            found = b""
            while piece := connection.recv(65536):
                found += piece
        assert statuses(found) == [200] * sent.count(b"GET ")


def test_requests_with_bodies_that_are_sent_ahead_do_not_fill_the_memory(port: int) -> None:
    connections: list[BoundedConnection] = []
    with pytest.MonkeyPatch.context() as patch:
        made = BoundedConnection.connection_made
        patch.setattr(BoundedConnection, "connection_made", lambda *given: (connections.append(given[0]), made(*given)))
        with closing(socket.create_connection(("127.0.0.1", port), timeout=SOON_S)) as connection:
            connection.setblocking(False)
            block, num_answered, unparsed = request(more=b"") * 500, 0, [0]
            left = memoryview(block)
            while num_answered < 100:
                select.select([connection], [connection], [], SOON_S)
                with suppress(BlockingIOError):
                    left = left[connection.send(left) :] or memoryview(block)
                with suppress(BlockingIOError):
                    num_answered += connection.recv(1 << 20).count(b"HTTP/1.1 200")
                unparsed += [len(each._rest) for each in connections]
    assert max(unparsed) < 2 * 262_144, "what two reads bring"


def test_a_client_that_goes_before_its_answers_is_no_error(
    port: int, parsed: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    short = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
    num = PIECE_BYTES // len(short)
    with closing(socket.create_connection(("127.0.0.1", port), timeout=SOON_S)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(short * num)
        wait_until(lambda: len(parsed) == num, 60, "all of them to be parsed")
        time.sleep(0.2)  # until the connection is full
    for _ in range(5):
        assert statuses(answer(port, get(b"/healthz"))) == [200]
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
