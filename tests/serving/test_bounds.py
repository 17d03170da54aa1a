"""No request, however bad, stops a server: bodies, nesting, numbers, slow clients; and each bound is seen to matter."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest

from tests.serving.live import live_server
from wire.partitioner import partition_of
from wire.status import ServerStatus, encode_status

SOON_S = 5.0
"""Far more than an answer takes; without the bounds these bodies took 16 s and more."""
NUM_LONG = 6
"""So many that all are not answered in the moment that a short request takes, on a machine however busy."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with live_server(read_timeout_s=1.0) as (_, port):
        yield port


def post(port: int, path: str, body: bytes, **headers: str) -> httpx.Response:
    headers = {"content-type": "application/json", **headers}
    return httpx.post(f"http://127.0.0.1:{port}{path}", content=body, headers=headers, timeout=SOON_S)


def is_alive(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=SOON_S).status_code == 200


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SOON_S)


def head(path: str, num_bytes: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {num_bytes}\r\n\r\n"
    ).encode()


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes, in any way."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        found += b"(reset)"
    return found


def test_a_list_that_is_too_long_is_refused_before_its_elements_are_looked_at(port: int) -> None:
    answer = post(port, "/rank", b'{"user": 1, "items": [' + b",".join([b"{}"] * 40_000) + b"]}")
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["field"], problem["expected"], problem["got"]) == ("items", "at most 10000", 40_000)
    assert is_alive(port)


def test_the_first_twenty_problems_are_told(port: int) -> None:
    answer = post(port, "/rank", json.dumps({"user": 1, "items": [{}] * 9_000, "nonsense": 1}).encode())
    problems = answer.json()["detail"]
    assert answer.status_code == 422
    assert [each["field"] for each in problems] == ["nonsense", *(f"items.{n}" for n in range(19))]


def large_body_answer(port: int, num_bytes: int) -> tuple[bytes, int]:
    """What a client that first sends its whole body then reads, and how much of the body the server took."""
    with closing(connect(port)) as connection:
        connection.sendall(head("/rank", num_bytes))
        piece, num_sent = b"x" * 65536, 0
        try:
            while num_sent < num_bytes:
                num_sent += connection.send(piece[: num_bytes - num_sent])
        except (BrokenPipeError, ConnectionResetError):
            pass
        return read_all(connection), num_sent


def test_a_body_that_is_too_large_is_refused_so_that_the_client_reads_it(port: int) -> None:
    for _ in range(2):
        answer, num_sent = large_body_answer(port, 3_600_000)
        assert num_sent == 3_600_000
        assert answer.startswith(b"HTTP/1.1 413 ")
        (problem,) = json.loads(answer.split(b"\r\n\r\n", 1)[1])["detail"]
        assert problem["expected"] == "at most 256000 bytes"
        assert "serving.max_body_bytes" in problem["do"]
    assert is_alive(port)


def test_a_body_that_is_declared_too_large_is_refused_before_a_byte_of_it_has_come(port: int) -> None:
    with closing(connect(port)) as connection:
        connection.sendall(head("/rank", 3_600_000))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_server_that_reads_what_is_declared_is_caught() -> None:
    with live_server(max_body_bytes=10**9, read_timeout_s=1.0) as (_, port), closing(connect(port)) as connection:
        connection.sendall(head("/rank", 3_600_000))
        assert not connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_in_pieces_is_refused_at_the_piece_that_goes_too_far(port: int) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * 10_000

    answer = httpx.post(f"http://127.0.0.1:{port}/rank", content=pieces(), timeout=SOON_S,
                        headers={"content-type": "application/json"})  # fmt: skip
    assert answer.status_code == 413
    assert 256_000 < answer.json()["detail"][0]["got"] < 640_000


@pytest.mark.parametrize("sent", [b"", b"POST /rank HTT", b"POST /rank HTTP/1.1\r\nhost: x\r\n", head("/rank", 100),
                                  head("/rank", 100) + b"{"])  # fmt: skip
def test_a_client_that_does_not_go_on_is_told_and_let_go(port: int, sent: bytes) -> None:
    with closing(connect(port)) as slow:
        slow.sendall(sent)
        assert is_alive(port)
        assert read_all(slow).startswith(b"HTTP/1.1 408 ")


def test_clients_that_do_not_go_on_are_no_reason_to_wait(port: int) -> None:
    slow = [connect(port) for _ in range(200)]
    for each in slow:
        each.sendall(head("/rank", 100) + b"{")
    assert is_alive(port)
    assert post(port, "/recommend", b'{"user": "u0"}').status_code == 200
    for each in slow:
        each.close()


def test_a_head_without_end_is_refused(port: int) -> None:
    with closing(connect(port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"x-filler: " + b"y" * 70_000)
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")
    assert is_alive(port)


def test_a_server_without_time_outs_is_caught() -> None:
    with live_server(read_timeout_s=10**6) as (_, port), closing(connect(port)) as slow:
        slow.sendall(head("/rank", 100))
        slow.settimeout(2.0)
        with pytest.raises(TimeoutError):
            slow.recv(1)


DEEP = b"[" * 60_000 + b"]" * 60_000
BODIES: list[tuple[bytes, str]] = [
    (b'{"user": 1, "items": [' + DEEP + b"]}", "body"),
    (b'{"user": 1, "items": ' + DEEP + b"}", "body"),
    (DEEP, "body"),
    (b'{"user": 1, "items": [1], "deeper": ' + b'{"a":' * 40_000 + b"1" + b"}" * 40_000 + b"}", "body"),
    (b'{"user": ' + b"9" * 200_000 + b', "items": [1]}', "body"),
    (b'{"user": 1e999999, "items": [1]}', "body"),
    (b'{"user": 99999999999999999999, "items": [1]}', "user"),
    (b'{"user": NaN, "items": [1]}', "body"),
    (b'{"user": 1, "items": [Infinity]}', "body"),
    (b'{"user": 1, "items": ["\\ud800"]}', "body"),
    (b'{"user": 1, "items": ["' + b"x" * 200_000 + b'"]}', "items.0"),
    (b'{"user": "", "items": [1]}', "user"),
    (b'{"' + b"x" * 200_000 + b'": 1}', "x" * 200),
    (b"", "body"),
    (b"\x00" * 1000, "body"),
    (b"null", "body"),
]


@pytest.mark.parametrize(("body", "field"), BODIES, ids=range(len(BODIES)))
def test_whatever_is_in_a_body_the_answer_is_a_refusal(port: int, body: bytes, field: str) -> None:
    answer = post(port, "/rank", body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"] == field
    assert len(answer.content) < 20_000
    assert is_alive(port)


def test_of_a_key_that_stands_twice_the_last_counts(port: int) -> None:
    answer = post(port, "/recommend", b'{"user": "nobody", "user": "u1"}')
    assert answer.json()["cold"] is False


@pytest.mark.parametrize("path", ["/recommend/batch", "/rank/batch"])
def test_a_batch_is_bounded_as_a_whole_and_in_its_parts(port: int, path: str) -> None:
    one: dict[str, Any] = {"user": 1, "items": [1]} if "rank" in path else {"user": 1}
    many = post(port, path, json.dumps({"requests": [one] * 65}).encode()).json()["detail"]
    assert [(each["field"], each["expected"]) for each in many] == [("requests", "at most 64")]
    long = {"requests": [one, {**one, "history": [], "user": None, "domain": True}]}
    (problem,) = post(port, path, json.dumps(long).encode()).json()["detail"]
    assert problem["field"] == "requests.1.domain"


@pytest.mark.parametrize("path", ["/recommend", "/explain", "/recommend/batch"])
def test_a_domain_to_recommend_for_is_refused_and_the_filter_named(port: int, path: str) -> None:
    one = {"user": "u1", "domain": "a"}
    (problem,) = post(port, path, json.dumps({"requests": [one]} if "batch" in path else one).encode()).json()["detail"]
    assert problem["field"].endswith("domain")
    assert "To choose among the items of some domains, send domains to /recommend" in problem["do"]
    assert post(port, "/rank", json.dumps({**one, "items": [1]}).encode()).status_code == 200
    assert "fields: item, k" in post(port, "/similar", b'{"item": 1, "domain": "a"}').json()["detail"][0]["do"]


@pytest.mark.parametrize(
    ("path", "wrong", "field"),
    [
        ("/recommend/batch", {"user": "u2", "features": {"nope": ["x"]}}, "features"),
        ("/recommend/batch", {"user": "u2", "timestamp": 5}, "timestamp"),
        ("/rank/batch", {"user": "u2", "items": [1], "weights": {"nope": 1}}, "weights"),
        (
            "/rank/batch",
            {"history": [{"item": 1, "action": "nope", "timestamp": 1_700_000_000_000}], "items": [1]},
            "history.0.action",
        ),
    ],
)
def test_the_refusal_of_a_batch_says_which_request_is_wrong(
    port: int, path: str, wrong: dict[str, Any], field: str
) -> None:
    good = {"user": "u1", "items": [1]} if "rank" in path else {"user": "u1"}
    answer = post(port, path, json.dumps({"requests": [good, good, wrong, good]}).encode())
    assert (answer.status_code, answer.json()["detail"][0]["field"]) == (422, f"requests.2.{field}")
    alone = post(port, path.removesuffix("/batch"), json.dumps(wrong).encode())
    assert alone.json()["detail"][0]["field"] == field


def test_the_refusal_of_a_batch_that_was_divided_says_which_request_is_wrong() -> None:
    users = {
        number: next(f"u{n}" for n in range(9) if partition_of(f"u{n}".encode(), 2) == number) for number in (0, 1)
    }
    with live_server() as (one, port), live_server() as (other, other_port):
        for service, partitions in ((one, "1/2"), (other, "2/2")):
            service.shard.partitions = partitions
            service.shard.place(2)
            service.shard.caught_up.set()
            service.placing.known.set()
        one.placing.peers.hear(encode_status(ServerStatus(
            component="other", time_ms=0, partitions="2/2", num_partitions=2, address=f"http://127.0.0.1:{other_port}"
        )))  # fmt: skip
        good = [{"user": users[place]} for place in (0, 1, 0, 1)]
        assert post(port, "/recommend/batch", json.dumps({"requests": good}).encode()).status_code == 200
        for place in range(4):
            wrong = [{**each, "timestamp": 5} if place == at else each for at, each in enumerate(good)]
            (problem,) = post(port, "/recommend/batch", json.dumps({"requests": wrong}).encode()).json()["detail"]
            assert problem["field"] == f"requests.{place}.timestamp"


def test_long_requests_do_not_keep_the_others_from_their_answers() -> None:
    body = json.dumps({"user": "u0", "items": list(range(10_000))}).encode()
    with live_server(max_wait_s=60.0) as (_, port), ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))
        long = [stack.enter_context(closing(connect(port))) for _ in range(NUM_LONG)]
        for each in long:
            each.sendall(head("/rank", len(body)) + body)
        num_before, answered = 0, list[socket.socket]()
        while len(answered) < NUM_LONG:
            assert client.post("/recommend", json={"user": "u1"}).status_code == 200
            answered, _, _ = select.select(long, [], [], 0)
            num_before += len(answered) < NUM_LONG
        assert all(each.recv(16).startswith(b"HTTP/1.1 200") for each in long)
    assert num_before >= 1, "the short ones went by"
