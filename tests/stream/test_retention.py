"""What a worker asks for on behalf of those who have not come for long, without a broker."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from headrace.config import Settings
from state.store import PartitionStore
from state.user_store import UserStore
from stream import retention
from stream.retention import Retention, together
from wire.action import decode_record
from wire.action_json import ForgetRequest
from wire.config import ActionConfig, SequenceConfig
from wire.moment import MS_PER_DAY

TODAY_MS = time.time_ns() // 1_000_000 // MS_PER_DAY * MS_PER_DAY
SETTINGS = Settings().model_copy(update={"sequence": SequenceConfig(forget_after_days=30)})


class Broker:
    """Takes requests, unless it is away; `apply` has the store carry them out."""

    def __init__(self, store: PartitionStore) -> None:
        self.store, self.is_away, self.next = store, False, store.applied_offset + 1
        self.waiting: list[tuple[int, int, None, bytes]] = []
        self.asked: list[list[str]] = []

    async def send(self, topic: str, partition: int, key: bytes, value: bytes) -> Any:
        answer = asyncio.get_running_loop().create_future()
        if self.is_away:
            answer.set_exception(KafkaConnectionError())
            return answer
        assert (topic, partition, key) == ("headrace.actions.v1", 0, json.loads(value)["users"][0].encode())
        self.asked.append(json.loads(value)["users"])
        self.waiting.append((self.next, TODAY_MS, None, value))
        answer.set_result(SimpleNamespace(offset=self.next))
        self.next += 1
        return answer

    def apply(self) -> int:
        result = self.store.apply(self.waiting)
        self.waiting = []
        return result.num_forgotten


def act(store: PartitionStore, users: list[str], time_ms: int) -> None:
    first, log = store.applied_offset + 1, []
    for number, user in enumerate(users):
        action = {"user": user, "item": number, "action": "click", "timestamp": time_ms}
        log.append((first + number, time_ms, None, json.dumps(action).encode()))
    store.apply(log)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PartitionStore]:
    """Sixty users of forty days ago, and those of today."""
    opened = PartitionStore.open(tmp_path / "db", 0)
    act(opened, [f"v{number:02}" for number in range(60)] * 2, TODAY_MS - 40 * MS_PER_DAY)
    act(opened, [f"r{number}" for number in range(20)] * 6, TODAY_MS)
    yield opened
    opened.close()


def made(store: PartitionStore, settings: Settings = SETTINGS) -> tuple[Retention, Broker]:
    broker = Broker(store)
    return Retention(0, settings, broker), broker  # type: ignore[arg-type]


def names(store: PartitionStore) -> list[str]:
    return [user.name for user in store.users.everyone()]


def test_each_quiet_user_is_asked_for_once_a_day_and_nobody_else(
    store: PartitionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOKED_AT", 7)
    monkeypatch.setattr(retention, "MOST", 20)
    found, broker = made(store)
    num_forgotten = []
    for _ in range(40):
        asyncio.run(found.step(store))
        num_forgotten.append(broker.apply())
    assert [len(users) for users in broker.asked] == [20, 20, 20]
    assert sum(num_forgotten) == 60
    assert all(name.startswith("r") for name in names(store))
    assert len(names(store)) == 20
    monkeypatch.setattr(UserStore, "quiet", None)
    asyncio.run(found.step(store))  # does not look again today


def test_the_next_step_waits_until_a_request_is_carried_out(
    store: PartitionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST", 20)
    found, broker = made(store)
    for _ in range(5):
        asyncio.run(found.step(store))
    assert len(broker.asked) == 1
    broker.apply()
    asyncio.run(found.step(store))
    assert len(broker.asked) == 2


def test_who_acts_before_a_request_is_carried_out_stays(store: PartitionStore) -> None:
    found, broker = made(store)
    asyncio.run(found.step(store))
    act(store, ["v07"], TODAY_MS)
    broker.waiting = [(store.applied_offset + 1, *rest) for _, *rest in broker.waiting]  # type: ignore[misc]
    assert broker.apply() == 59
    assert "v07" in names(store)


def test_who_was_found_before_a_clock_was_in_doubt_is_not_asked_for(
    store: PartitionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOKED_AT", 7)
    found, broker = made(store)
    asyncio.run(found.step(store))
    act(store, ["ahead"], TODAY_MS + 40 * MS_PER_DAY)
    for _ in range(20):
        asyncio.run(found.step(store))
    assert broker.asked == []
    act(store, [f"r{number}" for number in range(20)] * 12, TODAY_MS)
    asyncio.run(found.step(store))
    assert broker.asked == []  # all count as of today


def test_a_request_that_failed_is_sent_again_with_the_same_users(store: PartitionStore) -> None:
    found, broker = made(store)
    broker.is_away = True
    for _ in range(3):
        with pytest.raises(KafkaConnectionError):
            asyncio.run(found.step(store))
    broker.is_away = False
    asyncio.run(found.step(store))
    assert broker.apply() == 60


def test_by_default_nobody_is_asked_for(store: PartitionStore) -> None:
    found, broker = made(store, Settings())
    asyncio.run(found.step(store))
    assert not broker.asked


def test_a_worker_takes_what_it_asks_for_whatever_its_limits_are() -> None:
    """Long names fill a request, and a worker may refuse records of little size."""
    users = [f"{number:05}" + "\x01" * 250 for number in range(100)]
    config = dataclasses.replace(ActionConfig(), max_record_bytes=10_000)
    parts = list[list[str]]()
    while (num := sum(map(len, parts))) < len(users):
        parts.append(list(together(users[num:], config.max_record_bytes // 2)))
    assert [user for part in parts for user in part] == users
    assert len(parts) > 20
    for part in parts:
        value = json.dumps({"forget": True, "users": part, "before_offset": 1 << 60}).encode()
        (request,) = decode_record(value, 0, config)
        assert isinstance(request, ForgetRequest)
        assert list(request.users) == part
