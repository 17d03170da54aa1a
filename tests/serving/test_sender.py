"""Requests that wait for the broker are bounded in number and in time."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import serving.sender
from serving.errors import NotReadyError, OverloadedError
from serving.request_bodies import ForgetRequest
from serving.sender import MAX_SENDINGS, ActionSender, Sendings
from tests.brokers import Broker
from wire.config import ActionConfig, KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.producer import make_producer
from wire.kafka.reports import check_partitions
from wire.status import WorkerStatus, encode_status, key_of
from wire.topics import Topics


def test_more_than_may_wait_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.sender, "MAX_SENDINGS", 3)
    is_back = threading.Event()

    async def ask() -> list[bool | BaseException]:
        sendings = Sendings()
        waiting = [asyncio.create_task(sendings.run(is_back.wait, 20)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="nothing was sent: 3 requests wait for the broker"):
            await sendings.run(is_back.wait)
        is_back.set()
        return [*await asyncio.gather(*waiting), await sendings.run(is_back.wait)]

    assert asyncio.run(ask()) == [True] * 4


def test_what_has_waited_too_long_for_others_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.sender, "TIMEOUT_S", -1.0)
    sent: list[int] = []
    with pytest.raises(OverloadedError, match="nothing was sent"):
        asyncio.run(Sendings().run(sent.append, 1))
    assert sent == []


def test_as_many_as_may_wait_are_sent_by_a_broker_that_takes_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.sender, "TIMEOUT_S", 3.0)

    async def ask() -> None:
        sendings = Sendings()
        await asyncio.gather(*(sendings.run(time.sleep, 1.0) for _ in range(MAX_SENDINGS)))

    asyncio.run(ask())


def test_who_looks_up_another_servers_name_waits_for_no_broker() -> None:
    async def ask() -> None:
        sendings, is_back = Sendings(), threading.Event()
        waiting = [asyncio.create_task(sendings.run(is_back.wait, 60)) for _ in range(MAX_SENDINGS)]
        await asyncio.sleep(0.1)
        try:
            async with asyncio.timeout(20):
                await asyncio.get_running_loop().getaddrinfo("localhost", 80)
        finally:
            is_back.set()
            await asyncio.gather(*waiting)

    asyncio.run(ask())


def test_requests_to_forget_ask_seldom_with_how_many_partitions_workers_work(
    kafka: Broker, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=2), list[KafkaConfig]()
    ensure_topics(config)

    def ask(kafka: KafkaConfig) -> None:
        asked.append(kafka)
        check_partitions(kafka)

    def report(num_partitions: int) -> None:
        status = WorkerStatus(component="w", time_ms=0, partitions={}, num_partitions=num_partitions)
        producer = make_producer(config)
        producer.send(Topics.under(topic_prefix).status, encode_status(status), key_of(status), partition=0).get(10)
        producer.close()

    monkeypatch.setattr(serving.sender, "check_partitions", ask)
    sender = ActionSender(config, ActionConfig())
    try:
        report(2)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda number: sender.forget(ForgetRequest(user=f"u{number}")), range(12)))
        assert len(asked) == 1
        report(3)
        monkeypatch.setattr(serving.sender, "CHECKED_S", 0.0)
        sender._check._known_until_s = 0.0
        with pytest.raises(NotReadyError, match="expected 3, as worker w has it, got 2"):
            sender.forget(ForgetRequest(user="u"))
        assert len(asked) == 2
    finally:
        sender.close()
