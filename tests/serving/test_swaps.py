"""Requests over HTTP while versions are swapped: each is answered, wholly by the version that it names.

HEADRACE_SWAP_REQUESTS=N asks so many instead of the suite's few, with a swap a second.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from serving.answering.engine import Engine
from serving.config import ServingConfig
from serving.request_bodies import RecommendRequest
from serving.request_builder import RequestBuilder
from serving.service import Service
from serving.versions import manager as weights_manager
from serving.versions.manager import HeldVersion, WeightsManager
from tests.serving.live import WORLD, live_server, service_of
from tests.serving.world import START_MS, World, manager_of, versions
from wire.weights import Version

NUM_REQUESTS = int(os.environ.get("HEADRACE_SWAP_REQUESTS", "3000"))
SWAP_EVERY_S = 1.0 if "HEADRACE_SWAP_REQUESTS" in os.environ else 0.05
NUM_CLIENTS, NUM_DELTAS = 8, 40
AT_MS = START_MS + 10**8
USERS = tuple(WORLD.histories)
Answers = dict[str, dict[Any, float]]
"""User → what is recommended, with its score."""


@dataclass
class Expected:
    """What each version answers to each user, computed before it comes into service, without cache or company."""

    service: Service
    answers: dict[tuple[int, int], Answers] = field(default_factory=dict)

    def note(self, version: HeldVersion) -> Callable[[], None]:
        engine = Engine(self.service.histories, cache_bytes=0)
        builder = RequestBuilder(self.service.config, self.service.histories)
        asks = [builder.recommend(version, RecommendRequest(user=user, timestamp=AT_MS)) for user in USERS]
        self.answers[version.which] = {
            user: {version.names[key]: score for key, score in zip(found.items.tolist(), found.scores.tolist(),
                                                                  strict=True)}
            for user, ask in zip(USERS, asks, strict=True) for found in engine.answer(version, [ask])
        }  # fmt: skip
        return lambda: None


def renumbered(deltas: list[Version]) -> Iterator[Version]:
    """These deltas over and over, as versions that follow each other: each brings rows and dense weights whole."""
    number = deltas[0].manifest.number
    while True:
        for each in deltas:
            manifest = msgspec.structs.replace(each.manifest, number=number, onto_number=number - 1)
            yield Version(manifest, each.snapshot)
            number += 1


@contextmanager
def swapping(manager: WeightsManager, coming: Iterator[Version]) -> Iterator[None]:
    """Versions come into service all the while."""
    over = threading.Event()

    def swap() -> None:
        while not over.wait(SWAP_EVERY_S):
            manager.stage(next(coming))
            manager.swap()
            manager.settle()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


async def ask(port: int, num: int, seen: list[tuple[str, int, bytes]], least_s: float) -> None:
    """One client: requests one after the other, for at least so long; (user, status, body) of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    until, done = time.monotonic() + least_s, 0
    while done < num or time.monotonic() < until:
        user = USERS[done % len(USERS)]
        body = msgspec.json.encode({"user": user, "timestamp": AT_MS})
        head = b"POST /recommend HTTP/1.1\r\nhost: s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        told = await reader.readuntil(b"\r\n\r\n")
        size = int(told.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        seen.append((user, int(told[9:12]), await reader.readexactly(size)))
        done += 1
    writer.close()


def faults_of(seen: list[tuple[str, int, bytes]], expected: dict[tuple[int, int], Answers]) -> Counter[str]:
    """How many failed, and how many are not what the version that they name says."""
    found: Counter[str] = Counter()
    for user, status, body in seen:
        if status != 200:
            found["failed"] += 1
            continue
        answer = msgspec.json.decode(body)
        wanted = expected[answer["version"]["epoch"], answer["version"]["number"]][user]
        got = {each["item"]: each["score"] for each in answer["items"]}
        same = got.keys() == wanted.keys() and np.allclose(
            list(got.values()), [wanted[item] for item in got], rtol=1e-4, atol=1e-4
        )
        found["mixed"] += not same
    return found


def run(num_requests: int, least_s: float) -> tuple[Counter[str], int, int]:
    """Faults, answers, versions that answered."""
    world = World(num_users=4)
    base = next(versions(world, 1))
    manager = manager_of(base)
    service = service_of(manager, ServingConfig(cache_versions=0))
    expected = Expected(service)
    assert manager.current is not None
    expected.note(manager.current)
    manager.before_swap.append(expected.note)
    deltas = [each for each in versions(world, NUM_DELTAS, base_every=10**9) if each.manifest.kind == "delta"]
    seen: list[tuple[str, int, bytes]] = []
    with live_server(service) as (_, port), swapping(manager, renumbered(deltas)):

        async def everybody() -> None:
            await asyncio.gather(*(ask(port, num_requests // NUM_CLIENTS, seen, least_s) for _ in range(NUM_CLIENTS)))

        asyncio.run(everybody())
    answered = {tuple(msgspec.json.decode(body)["version"].values()) for _, status, body in seen if status == 200}
    return faults_of(seen, expected.answers), len(seen), len(answered)


@pytest.mark.slow
def test_no_request_fails_or_is_answered_by_two_versions_while_versions_are_swapped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults, num, num_versions = run(NUM_REQUESTS, 1.0)
    with capsys.disabled():
        print(f"\n  {num:,} requests, answered by {num_versions} versions: {faults['failed']} failed, "
              f"{faults['mixed']} mixed")  # fmt: skip
    assert num >= NUM_REQUESTS
    assert num_versions > 3
    assert (faults["failed"], faults["mixed"]) == (0, 0)


def test_versions_that_are_written_over_while_they_answer_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap that changes the side that is read."""

    def tear(self: WeightsManager, version: Version) -> None:
        current = self.current
        if current is not None:
            current.tables.apply(version.snapshot, current.network.derived, current.network.config, is_base=False)
        stage(self, version)

    stage = weights_manager.WeightsManager.stage
    monkeypatch.setattr(weights_manager.WeightsManager, "stage", tear)
    faults, _, _ = run(400, 1.0)
    assert faults["mixed"] > 0
