"""Fixtures of the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Broker
from tests.process_factory import ProcessFactory
from tests.trainer.process_factory import PAIR_ROWS
from tests.trainer.stage import Stage
from trainer.checkpoint.folder import CheckpointFolder


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in the processes, a small table for pairs of attributes: otherwise most of a copy is its empty rows."""
    monkeypatch.setattr("kernels.odds.arrays.PAIR_ROWS", PAIR_ROWS)


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessFactory]:
    """Starts trainer processes."""
    made = ProcessFactory(tmp_path_factory.mktemp("factory"), "trainer")
    yield made
    made.close()


@pytest.fixture
def stage(
    kafka: Broker, topic_prefix: str, tmp_path: Path, factory: ProcessFactory, one_thread: None
) -> Iterator[Callable[..., Stage]]:
    """Makes this test's topics; takes sections of the configuration."""
    made: list[Stage] = []

    def make(**sections: dict[str, Any]) -> Stage:
        made.append(Stage(kafka, topic_prefix, tmp_path, factory, **sections))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def damage() -> list[str]:
    """What the folder reports about damaged checkpoints."""
    return []


@pytest.fixture
def folder(tmp_path: Path, damage: list[str]) -> Iterator[CheckpointFolder]:
    """An empty folder of checkpoints."""
    made = CheckpointFolder(tmp_path / "kept", damage.append).open()
    yield made
    made.close()
