"""Fixtures of the stream's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.process_factory import ProcessFactory
from tests.stream.workers import Deployment, WorkerProcess


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessFactory]:
    """Where worker processes come from."""
    made = ProcessFactory(tmp_path_factory.mktemp("workers"), "stream")
    yield made
    made.close()


@pytest.fixture
def deployment(kafka: Broker, topic_prefix: str, tmp_path: Path, factory: ProcessFactory) -> Iterator[Deployment]:
    """Topics and settings of this test only."""
    made = Deployment(kafka, topic_prefix, tmp_path, factory=factory)
    made.create_topics()
    yield made
    made.close()


@pytest.fixture
def worker(deployment: Deployment) -> Iterator[Callable[[str], WorkerProcess]]:
    """Makes workers that end with the test."""
    made: list[WorkerProcess] = []

    def make(name: str = "w") -> WorkerProcess:
        made.append(deployment.worker(name))
        return made[-1]

    yield make
    for process in made:
        process.end()
