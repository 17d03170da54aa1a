"""Waiting requests are answered: next to a failing one, next to a long one, and before shutdown; or refused in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from serving.answering.batcher import LONG_WEIGHT, Batcher
from serving.answering.cost import CostModel
from serving.answering.engine import Engine
from serving.answering.lane import Lane
from serving.answering.request import Request, Result
from serving.errors import OverloadedError
from serving.heartbeat import Heartbeat
from serving.users.histories import Histories
from serving.versions.manager import HeldVersion
from tests.serving.world import World, manager_of, versions
from wire.config import KafkaConfig
from wire.example import no_interactions

MANAGER = manager_of(next(versions(World(num_users=2), 1)))
FINE = Request(None, no_interactions(), np.zeros(0, np.int64), 2**40, k=3)
BROKEN = Request(None, no_interactions(), np.zeros(0, np.int64), 2**40, candidates=np.array(["no hash"]))  # type: ignore[arg-type]


@dataclass
class PlainJob:
    """A job whose answer is the number of items found."""

    ask: Request = FINE
    weight: float = 1.0
    started: threading.Event | None = None
    release: threading.Event | None = None

    def prepare(self, _version: HeldVersion) -> list[Request]:
        if self.started is not None and self.release is not None:
            self.started.set()
            assert self.release.wait(60)
        return [self.ask]

    def body(self, _version: HeldVersion, found: Sequence[Result]) -> bytes:
        return b"%d" % len(found[0].items)


class CountingEngine(Engine):
    """Notes how many requests it is asked at a time."""

    def __init__(self) -> None:
        super().__init__(Histories(10**6))
        self.sizes: list[int] = []

    def answer(self, version: HeldVersion, requests: Sequence[Request]) -> list[Result]:
        self.sizes.append(len(requests))
        return super().answer(version, requests)


def batcher(engine: Engine | None = None, **options: Any) -> Batcher:
    settings: dict[str, Any] = {"num_workers": 1, "max_batch": 4, "max_waiting": 100, **options}
    return Batcher(engine or CountingEngine(), MANAGER, **settings)


class _Slippery(list[Request]):
    """A list of requests that fails when it is iterated."""

    def __iter__(self) -> Any:
        raise ValueError("cannot be iterated")


class SlipperyJob(PlainJob):
    """A job that fails where no error is expected."""

    def prepare(self, _version: HeldVersion) -> list[Request]:
        return _Slippery()


def test_a_lane_outlives_whatever_a_job_does_and_everybody_is_answered() -> None:
    made = batcher()

    async def ask() -> list[Any]:
        first = await asyncio.wait_for(asyncio.gather(made.answer(SlipperyJob()), return_exceptions=True), 60)
        return [*first, await asyncio.wait_for(made.answer(PlainJob()), 60)]

    failed, fine = asyncio.run(ask())
    assert isinstance(failed, ValueError)
    assert fine == b"3"
    made.close()


def test_a_request_that_fails_takes_no_other_along() -> None:
    lane = Lane("short", CountingEngine(), MANAGER, 1, 4.0, 100, 1.0)
    outcomes = lane.outcomes([PlainJob(), PlainJob(BROKEN), PlainJob()])
    assert [isinstance(each, bytes) for each in outcomes] == [True, False, True]
    assert outcomes[0] == b"3"
    lane.close()


def test_what_waits_is_answered_before_the_end() -> None:
    made = batcher()

    async def ask_and_close() -> list[bytes]:
        asked = [asyncio.create_task(made.answer(PlainJob())) for _ in range(20)]
        await asyncio.sleep(0)  # each has run up to the point where it waits
        await asyncio.sleep(0)  # and they are handed over
        await asyncio.to_thread(made.close)
        return await asyncio.gather(*asked)

    assert asyncio.run(ask_and_close()) == [b"3"] * 20


def test_requests_of_one_turn_of_the_loop_are_handed_over_together() -> None:
    engine = CountingEngine()
    made = batcher(engine, max_batch=16)

    async def ask() -> None:
        await asyncio.gather(*(made.answer(PlainJob()) for _ in range(16)))

    asyncio.run(ask())
    made.close()
    assert engine.sizes == [16]


def test_a_request_whose_weight_changes_while_it_waits_leaves_none_behind() -> None:
    started, release, cost = threading.Event(), threading.Event(), CostModel()
    cost.note(1.0, 0.01)
    made, growing = batcher(max_batch=1, cost=cost), PlainJob()

    async def ask() -> None:
        first = asyncio.create_task(made.answer(PlainJob(started=started, release=release)))
        assert await asyncio.to_thread(started.wait, 30)
        second = asyncio.create_task(made.answer(growing))
        await asyncio.sleep(0)
        growing.weight = 3.0
        release.set()
        await asyncio.gather(first, second)

    asyncio.run(ask())
    made.close()
    assert made.expected_wait_s()["short"] == 0.0


def test_a_long_request_does_not_keep_a_short_one_waiting() -> None:
    made, started, release = batcher(), threading.Event(), threading.Event()

    async def ask() -> tuple[bytes, bytes]:
        long = asyncio.create_task(made.answer(PlainJob(weight=LONG_WEIGHT + 1, started=started, release=release)))
        assert await asyncio.to_thread(started.wait, 30)
        short = await asyncio.wait_for(made.answer(PlainJob()), 60)
        release.set()
        return short, await long

    assert asyncio.run(ask()) == (b"3", b"3")
    made.close()


def test_what_would_wait_too_long_is_refused_and_says_for_how_long() -> None:
    started, release, cost = threading.Event(), threading.Event(), CostModel()
    for _ in range(50):
        cost.note(1.0, 0.6)  # as if each request took so long
    made = batcher(max_batch=1, max_wait_s=1.0, cost=cost)

    async def ask() -> list[bytes]:
        first = asyncio.create_task(made.answer(PlainJob(started=started, release=release)))
        assert await asyncio.to_thread(started.wait, 30)
        second = asyncio.create_task(made.answer(PlainJob()))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as refused:
            await made.answer(PlainJob())
        assert refused.value.retry_after_s == pytest.approx(1.2, rel=0.01)
        release.set()
        return [await first, await second]

    assert asyncio.run(ask()) == [b"3", b"3"]
    assert made.num_shed == 1
    assert asyncio.run(made.answer(PlainJob())) == b"3", "what was let go is admitted again"
    made.close()


def test_requests_that_are_heavier_than_a_batch_count_as_one_batch_each() -> None:
    """After rankings of 10,000, rankings of 1,000 were refused for seconds: each counted as five batches."""
    cost = CostModel()
    for weight in (201.0, 65.0) * 50:
        cost.note(weight, 0.05 + 0.0002 * weight)
    lane = Lane("long", CountingEngine(), MANAGER, 1, LONG_WEIGHT, 1024, 0.5, cost=cost)
    for _ in range(6):
        lane.admit(21.0)
    assert lane.expected_wait_s() == pytest.approx(6 * (0.05 + 0.0002 * 21), rel=0.01)
    lane.close()


def test_the_cost_of_a_batch_is_told_apart_from_that_of_its_requests() -> None:
    cost = CostModel()
    assert cost.seconds(100, 100 / 16) == 0.0
    for weight in (1, 4, 16, 8, 2) * 40:
        cost.note(weight, 0.010 + 0.001 * weight)
    assert cost.seconds(16, 1) == pytest.approx(0.026, rel=0.01)
    assert cost.seconds(160, 10) == pytest.approx(0.26, rel=0.01)


def test_a_pause_of_the_machine_turns_nobody_away() -> None:
    cost = CostModel()
    cost.note(1, 30.0)  # the first request loads what is loaded lazily
    assert cost.seconds(100, 100 / 16) == 0.0
    cost = CostModel()
    for _ in range(100):
        cost.note(4, 0.004)
    cost.note(4, 5.0)
    assert cost.seconds(100, 100 / 16) < 0.15


@pytest.mark.parametrize("held", [True, False])
def test_a_server_tells_the_version_that_it_answers_from(held: bool) -> None:
    manager = MANAGER if held else type(MANAGER)()
    status = Heartbeat(KafkaConfig(), "status", "here", manager, lambda: 7, 1.0).status()
    assert (status.component, status.num_requests) == ("here", 7)
    current = manager.current
    if current is None:
        assert (status.epoch, status.number, status.newest_record_ms) == (-1, -1, -1)
    else:
        assert (status.epoch, status.number) == current.which
        assert (status.newest_record_ms, status.swapped_ms) == (current.manifest.newest_record_ms, current.swapped_ms)
