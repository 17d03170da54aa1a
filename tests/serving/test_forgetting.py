"""What a server does when it reads that a user or an item is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from serving.answer_bodies import SentRequest
from serving.config import ServingConfig
from serving.http.app import build_app
from serving.request_bodies import ForgetRequest
from serving.service import Service
from serving.users.histories import Histories
from tests.serving.inprocess import Client
from tests.serving.live import MANAGER, service_of
from tests.serving.test_blocks import batched
from tests.serving.test_histories import record
from tests.serving.world import START_MS
from wire.example import Mark, fence
from wire.example_codec import encode_example
from wire.hashing import item_hash

AT = {"timestamp": START_MS + 10**8}


def mark(kind: Mark, number: int, *, user: str = "", item: Any = None, writer_epoch: int = 1) -> bytes:
    names = {} if item is None else {item_hash(item): item}
    return encode_example(
        replace(fence(0, writer_epoch, number), is_fence=False, mark=kind, user=user, names=names, segment_len=16)
    )


@pytest.fixture
def service() -> Iterator[Service]:
    service = service_of(MANAGER, ServingConfig())
    yield service
    service.close()


def test_a_user_who_is_forgotten_is_answered_cold_and_nothing_of_him_is_cached(service: Service) -> None:
    client = Client(build_app(service))
    assert client.post("/recommend", json={"user": "u1", **AT}).json()["cold"] is False
    assert service.engine.cache.get("u1") is not None
    service.histories.feed(0, mark(Mark.USER, 100, user="u1"))
    assert client.post("/recommend", json={"user": "u1", **AT}).json()["cold"] is True
    assert service.engine.cache.get("u1") is None
    assert "u1" not in service.histories.newest_users(50)
    assert client.post("/recommend", json={"user": "u2", **AT}).json()["cold"] is False


def test_users_who_are_forgotten_together_are_answered_cold(service: Service) -> None:
    client = Client(build_app(service))
    for user in ("u1", "u2", "u3"):
        client.post("/recommend", json={"user": user, **AT})
    service.histories.feed(0, mark(Mark.USERS, 100, user='["u1", "nobody", "u2"]'))
    assert [client.post("/recommend", json={"user": user, **AT}).json()["cold"] for user in ("u1", "u2", "u3")] == [
        True, True, False,
    ]  # fmt: skip
    assert service.engine.cache.get("u2") is None


def test_a_user_who_is_forgotten_while_a_request_is_answered_is_not_cached(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = service.engine._read_histories

    def forget_first(*given: Any) -> None:
        service.histories.feed(0, mark(Mark.USER, 100, user="u1"))
        read(*given)

    monkeypatch.setattr(service.engine, "_read_histories", forget_first)
    assert Client(build_app(service)).post("/recommend", json={"user": "u1", **AT}).json()["cold"] is False
    assert service.engine.cache.get("u1") is None


def test_what_a_fenced_writer_forgets_is_not_forgotten(service: Service) -> None:
    service.histories.feed(0, encode_example(fence(0, 9)))
    service.histories.feed(0, mark(Mark.USER, 100, user="u1", writer_epoch=3))
    assert service.histories.get("u1") is not None


def test_an_item_that_is_removed_is_in_no_answer_until_it_is_taken_back(service: Service) -> None:
    client = Client(build_app(service))
    body = {"user": "nobody", "k": 20, **AT}
    every = [each["item"] for each in client.post("/recommend", json=body).json()["items"]]
    gone = every[0]
    service.histories.feed(0, mark(Mark.ITEM, 100, item=gone))
    assert [each["item"] for each in client.post("/recommend", json=body).json()["items"]] == every[1:]
    allowed = client.post("/recommend", json={**body, "allow": [gone]}).json()
    assert allowed["items"] == []
    assert client.post("/rank", json={"user": "u1", "items": [gone]}).json()["items"][0]["known"] is False
    assert client.post("/items", json={"items": [gone]}).json()["items"][0]["known"] is False
    assert client.post("/similar", json={"item": gone}).json()["known"] is False
    alike = client.post("/similar", json={"item": every[1], "k": 50}).json()["items"]
    assert gone not in [each["item"] for each in alike]
    assert client.post("/explain", json={"user": "u1", "items": [gone]}).json()["items"][0]["known"] is False
    service.histories.feed(0, mark(Mark.ITEM_BACK, 101, item=gone))
    assert [each["item"] for each in client.post("/recommend", json=body).json()["items"]] == every


def test_marks_are_obeyed_where_records_come_by_the_batch() -> None:
    histories = Histories(10**9)
    values = [record("a", 5, 0), record("b", 5, 1), mark(Mark.USER, 2, user="a"), mark(Mark.ITEM, 3, item=7),
              record("a", 2, 4)]  # fmt: skip
    for batch in batched(values, size=3):
        histories.feed_batches(0, [batch])
    assert histories.removed == {item_hash(7)}
    past = histories.get("a")
    assert past is not None
    assert len(past.interactions) == 2


def test_an_item_that_is_removed_is_no_reason_and_stays_what_the_user_did(service: Service) -> None:
    client, body = Client(build_app(service)), {"user": "u1", "k": 10, "reasons": 50, "exclude_seen": False}

    def reasons() -> set[Any]:
        items = client.post("/explain", json=body).json()["items"]
        return {reason["item"] for item in items for reason in item["reasons"]}

    gone = next(iter(reasons()))
    service.histories.feed(0, mark(Mark.ITEM, 100, item=gone))
    assert reasons()
    assert gone not in reasons()
    past = client.get("/history?user=u1").json()["interactions"]
    assert gone in {each["item"] for each in past}


@pytest.mark.parametrize("by_batch", [False, True])
def test_examples_that_are_gone_once_all_was_read_are_missed(by_batch: bool) -> None:
    """The mark that says who is forgotten is replaced, under its key, by one that does not name anybody."""

    def feed(*values: bytes) -> None:
        if by_batch:
            histories.feed_batches(0, [*batched([*values], size=3)])
        else:
            for value in values:
                histories.feed(0, value)

    histories = Histories(10**9)
    feed(record("a", 5, 3), record("b", 5, 7))
    assert not histories.missing, "compaction has been here before"
    histories.is_complete = True
    feed(record("b", 6, 8), record("b", 7, 9), record("b", 7, 9))
    feed(b"nothing of ours", record("b", 8, 11))
    assert not histories.missing, "what was read and not understood may have been the one"
    feed(record("b", 9, 12), mark(Mark.USER, 14))
    assert histories.missing == "partition 0 lacks 1 examples from number 13 on"
    histories.begin_anew()
    feed(record("b", 8, 11), mark(Mark.USER, 14))
    assert not histories.missing
    assert len(histories) == 1
    histories.is_complete = True
    feed(record("b", 9, 15), record("b", 9, 17))
    assert histories.missing


def test_a_request_to_forget_by_http_goes_to_the_actions_topic_from_admins_alone(tmp_path: Any) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('read = ["a-token-that-reads"]\nadmin = ["a-token-that-administers"]\n')
    service = service_of(MANAGER, ServingConfig(allow_forget=True, tokens_file=str(tokens)))
    sent: list[ForgetRequest] = []

    class Sender:
        def forget(self, request: ForgetRequest) -> SentRequest:
            sent.append(request)
            return SentRequest(partition=0, offset=7)

        def close(self) -> None: ...

    client = Client(build_app(service))
    assert client.post("/forget", json={"user": "u1"}, token="a-token-that-reads").status_code == 403
    unready = client.post("/forget", json={"user": "u1"}, token="a-token-that-administers")
    assert unready.status_code == 503
    service.sender = Sender()  # type: ignore[assignment]
    told = client.post("/forget", json={"user": "u1"}, token="a-token-that-administers")
    assert told.json() == {"partition": 0, "offset": 7}
    for body, got in (
        ({}, "neither"),
        ({"user": "u", "item": 1}, "user, item"),
        ({"user": "u", "undo": True}, "user, undo"),
    ):
        refused = client.post("/forget", json=body, token="a-token-that-administers")
        assert refused.status_code == 422
        (problem,) = refused.json()["detail"]
        assert problem["expected"] == "either user or item, and undo with an item alone"
        assert problem["got"] == got
    assert [each.user for each in sent] == ["u1"]
    service.close()
    closed = service_of(MANAGER, ServingConfig())
    assert Client(build_app(closed)).post("/forget", json={"user": "u1"}).status_code == 404
    closed.close()
