"""Other servers as the status topic tells of them: who is live, who is asked first, and who is not believed."""

from __future__ import annotations

import time
from typing import Any

import pytest

import serving.users.peers
from serving.config import ServingConfig
from serving.errors import MisdirectedError, NotReadyError
from serving.request_bodies import RecommendRequest
from serving.users.addresses import address_of
from serving.users.peers import Peers, in_order
from serving.users.placing import Placing
from serving.users.question import Question
from serving.users.shard import Shard
from wire.checks import is_base_url
from wire.cluster import ClusterState
from wire.errors import ConfigError
from wire.partitioner import partition_of
from wire.status import ServerStatus, WorkerStatus, encode_status


class Clock:
    """`time.monotonic` under a test's control."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return time.time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(serving.users.peers, "time", made)
    return made


def report(name: str, partitions: str = "all", **more: Any) -> bytes:
    told = {"num_partitions": 4, "epoch": 1, "number": 1, "address": f"http://{name}:80", **more}
    return encode_status(ServerStatus(component=name, time_ms=int(time.time() * 1000), partitions=partitions, **told))


def names(peers: Peers, partition: int) -> list[str]:
    return [each.name for each in peers.holders(partition, 4)]


def test_holders_are_those_that_say_so_and_can_be_reached() -> None:
    peers = Peers("own")
    for value in (
        report("b", "2/2"), report("a", "1-3"), report("own"), report("catching-up", "none"),
        report("unreached", address=""), report("odd", address="http://x/y"), report("fewer", num_partitions=2),
        report("earlier-build", "", num_partitions=0), b"{", None,
        encode_status(WorkerStatus(component="w", time_ms=1)),
    ):  # fmt: skip
        peers.hear(value)
    assert [names(peers, partition) for partition in range(4)] == [[], ["a", "b"], ["a"], ["a", "b"]]
    assert peers.unheld(frozenset(), 4) == {0}
    assert peers.unheld(frozenset({0}), 4) == set()
    peers.hear(report("a", "none"))
    assert names(peers, 2) == [], "it starts again"
    peers.hear(report("b", "2/2", address=""))
    assert names(peers, 1) == [], "it is not to be reached any more"


def test_a_server_is_silent_when_others_go_on_without_it(clock: Clock) -> None:
    peers = Peers("own")
    peers.hear(report("a"))
    for _ in range(12):
        clock.now_s += 1
        peers.hear(report("own"))
    assert names(peers, 0) == []


def test_while_the_broker_is_away_nobody_is_silent(clock: Clock) -> None:
    peers = Peers("own")
    peers.hear(report("a"))
    clock.now_s += 3600
    assert names(peers, 0) == ["a"]
    peers.hear(report("own"))
    assert names(peers, 0) == ["a"], "its next report is on its way"


def test_earlier_reports_are_as_old_as_they_say() -> None:
    peers = Peers("own")
    old = ServerStatus(component="a", time_ms=int(time.time() * 1000) - 60_000, partitions="all", num_partitions=4,
                       address="http://a:80")  # fmt: skip
    peers.hear(encode_status(old), is_earlier=True)
    assert names(peers, 0) == []
    peers.hear(encode_status(old))
    assert names(peers, 0) == ["a"], "its clock may be wrong; what has just arrived is new"


def test_a_report_that_is_heard_again_after_a_newer_one_changes_nothing() -> None:
    """Whoever reads the status topic begins anew after a failure, and hears the last thousand reports again."""
    peers, now_ms = Peers("own"), int(time.time() * 1000)

    def tell(partitions: str, age_s: float, **more: Any) -> None:
        told = {"num_partitions": 4, "address": "http://a:80", **more}
        status = ServerStatus(component="a", time_ms=now_ms - int(age_s * 1000), partitions=partitions, **told)
        peers.hear(encode_status(status), is_earlier=age_s > 0)

    tell("1-3", 0)
    for older in ({}, {"address": "http://before:80"}, {"address": ""}, {"num_partitions": 2}):
        tell("all", 60, **older)
        assert [names(peers, partition) for partition in range(4)] == [[], ["a"], ["a"], ["a"]], older
    assert peers.unheld(frozenset({0}), 4) == set()
    tell("2/2", 0)
    assert [names(peers, partition) for partition in range(4)] == [[], ["a"], [], ["a"]], "a newer one counts"


def test_only_allowed_addresses_are_asked() -> None:
    peers = Peers("own", ("http://a:80",))
    peers.hear(report("a"))
    peers.hear(report("b"))
    assert names(peers, 0) == ["a"]
    peers.hear(report("a", address="http://elsewhere:80"))
    assert names(peers, 0) == []


def test_a_user_has_one_holder_to_ask_first_as_long_as_it_answers(clock: Clock) -> None:
    peers = Peers("own")
    for name in ("a", "b", "c"):
        peers.hear(report(name, line="other" if name == "a" else ""))
    holders = peers.holders(0, 4)
    order = [[each.name for each in in_order(holders, turn, "")] for turn in range(4)]
    assert order == [["b", "c", "a"], ["b", "c", "a"], ["c", "b", "a"], ["b", "c", "a"]]
    holders[1].avoided_until_s = clock.now_s + 1
    assert [each.name for each in in_order(holders, 0, "")] == ["c", "a"]
    clock.now_s += 1
    assert [each.name for each in in_order(holders, 0, "")] == ["b", "c", "a"]


def placing(partitions: str, *, is_caught_up: bool = True, line: str = "") -> Placing:
    shard = Shard(partitions)
    shard.place(4)
    if is_caught_up:
        shard.caught_up.set()
    return Placing(shard, Peers(), "headrace", lambda: line, 1.0, 10)


async def answered(_request: Any) -> bytes:
    return b"here"


def given(placed: Placing, user: str, mark: str | None) -> bytes:
    import asyncio

    question = Question("POST", "/recommend", b"", None)
    return asyncio.run(placed.answer(answered, RecommendRequest(user=user), question, mark))


def test_a_forwarded_request_is_answered_or_refused_but_never_forwarded() -> None:
    placed, user = placing("0-1"), next(f"u{n}" for n in range(99) if partition_of(b"u%d" % n, 4) == 2)
    held = next(f"u{n}" for n in range(99) if partition_of(b"u%d" % n, 4) == 1)
    assert given(placed, held, "headrace 4") == b"here"
    with pytest.raises(MisdirectedError, match="expected a user of partitions 0-1, got one of partition 2"):
        given(placed, user, "headrace 4")
    for mark in ("another 4", "headrace 8", "headrace 4 line", ""):
        with pytest.raises(MisdirectedError, match="expected the mark 'headrace 4'"):
            given(placed, held, mark)
    with pytest.raises(MisdirectedError):
        given(placing("all"), held, "another 4")
    assert given(placing("0-1", line="b"), held, "headrace 4 b") == b"here"
    with pytest.raises(MisdirectedError, match="expected the mark 'headrace 4 b'"):
        given(placing("0-1", line="b"), held, "headrace 4")
    with pytest.raises(NotReadyError, match="histories"):
        given(placing("0-1", is_caught_up=False), held, "headrace 4")
    with pytest.raises(NotReadyError, match="no live server holds it"):
        given(placed, user, None)
    assert placed.counts() == (1, 1, 0)


def test_what_a_server_tells_others_while_it_cannot_answer_is_none() -> None:
    assert placing("1/2").shard.told == "1/2"
    assert placing("1/2", is_caught_up=False).shard.told == "none"
    with pytest.raises(ConfigError, match="expected numbers below 4"):
        placing("4")
    assert placing("9/9").shard.held == frozenset(), "of which the log warns"


def test_an_address_is_a_host_and_a_port() -> None:
    for good in ("http://a", "https://a.b:80", "http://[::1]:8080", "http://127.0.0.1:1"):
        assert is_base_url(good)
    for bad in (
        "",
        "a:80",
        "ftp://a",
        "http://a/b",
        "http://u@h",
        "http://a:b",
        "http://",
        "http://a:80\n",
        "http://a?b",
    ):
        assert not is_base_url(bad)
    assert address_of("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert address_of("::1", 80) == "http://[::1]:80"
    assert is_base_url(address_of("0.0.0.0", 8080))
    assert "0.0.0.0" not in address_of("0.0.0.0", 8080)


def test_the_cluster_knows_which_partitions_nobody_holds() -> None:
    state, now_ms = ClusterState(), int(time.time() * 1000)
    assert state.unheld(now_ms, "") == frozenset()
    state.hear(report("a", "none", epoch=-1, number=-1), now_ms)
    assert state.unheld(now_ms, "") == frozenset(), "without a version nobody's users are answered"
    state.hear(report("a", "none"), now_ms)
    assert state.unheld(now_ms, "") == {0, 1, 2, 3}
    state.hear(report("a", "1/2"), now_ms)
    state.hear(report("b", "all", line="b"), now_ms)
    assert (state.unheld(now_ms, ""), state.unheld(now_ms, "b")) == ({1, 3}, set())
    state.hear(report("c", "3"), now_ms)
    assert state.unheld(now_ms, "") == {1}
    assert state.unheld(now_ms + 60_000, "") == frozenset(), "without a live server nothing is known"
    state.hear(report("an earlier build", "", num_partitions=0, address=""), now_ms)
    assert state.unheld(now_ms, "") == frozenset(), "it holds all users"


def test_a_server_that_reports_as_seldom_as_it_may_is_not_silent(clock: Clock) -> None:
    every_s = ServingConfig(status_every_s=5.0).status_every_s
    with pytest.raises(ConfigError, match=r"serving\.status_every_s: expected a number, above 0 to 5, got 5\.1"):
        ServingConfig(status_every_s=5.1)
    peers, due_s = Peers("own"), clock.now_s
    for number in range(60):
        peers.hear(encode_status(WorkerStatus(component="w", time_ms=1)))
        if clock.now_s >= due_s + 4 * (number > 20):  # reports are late
            peers.hear(report("a"))
            due_s = clock.now_s + every_s
        assert names(peers, 0) == ["a"]
        clock.now_s += 1
