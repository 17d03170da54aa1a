"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# By default, idle OpenMP threads spin for milliseconds, which slows down a broker and a trainer beside them
# (`headrace.commands.processes`). Set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from tests.brokers import Broker, broker_in_use, forget_refused_sockets, remove_topics, start_broker


def pytest_report_header() -> str:
    """Say which broker the Kafka tests run on."""
    return f"kafka: {broker_in_use()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need a broker, by the fixtures that they request."""
    for item in items:
        if {"kafka", "eager"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)


_began_s = pytest.StashKey[float]()
MAX_LOGS, MAX_LINES, MAX_CHARS = 12, 60, 12_000
"""How much of its processes' logs a failed test shows: files, lines of each, and characters of each."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test what its processes said: the ends of all logs written to since it began."""
    began_s = item.stash.setdefault(_began_s, call.start)
    report = yield
    if report.failed:
        report.sections += ends_of_logs(item.session.config._tmp_path_factory.getbasetemp(), began_s)
    return report


def ends_of_logs(root: Path, since_s: float) -> list[tuple[str, str]]:
    """(title, last lines) of the logs below ``root`` that were written to since then, the latest last."""
    found: list[tuple[float, str, str]] = []
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names if name.endswith(".log")):
            with suppress(FileNotFoundError):
                written_s, end = path.stat().st_mtime, end_of(path)
                if end and written_s >= since_s - 1:
                    found.append((written_s, f"end of {path.relative_to(root)}", end))
    return [(title, end) for _, title, end in sorted(found)[-MAX_LOGS:]]


def end_of(path: Path) -> str:
    """The last lines of a log of text; empty for one of another kind (a database's, a broker's)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MAX_CHARS))
        end = file.read()
    return "" if b"\0" in end else "\n".join(end.decode(errors="replace").splitlines()[-MAX_LINES:])


@pytest.fixture(autouse=True)
def _plain_float32() -> None:
    """PyTorch's default for every test: a trainer in an earlier one may have set a lower precision."""
    if torch := sys.modules.get("torch"):
        torch.set_float32_matmul_precision("highest")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the order of the trainers under test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for the whole run; tests are separated by `topic_prefix`."""
    broker = start_broker(tmp_path_factory.mktemp("kafka"))
    forget_refused_sockets()
    yield broker
    broker.stop()


@pytest.fixture
def durable_kafka(kafka: Broker) -> Iterator[Broker]:
    """The same broker, for tests that kill it; it is running again when the test is over."""
    if not kafka.durable:
        pytest.skip("needs a broker that keeps its records over a kill: real Apache Kafka (java 17+ and mvn)")
    yield kafka
    kafka.restart()
    forget_refused_sockets()


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix of topics (and consumer groups) that no other test uses.

    The topics go with the test: a broker that was killed looks through every partition when it starts, and clients ask
    for the names of all topics.
    """
    prefix = f"t{uuid.uuid4().hex[:10]}"
    broker: Broker | None = request.getfixturevalue("kafka") if "kafka" in request.fixturenames else None
    yield prefix
    if broker is not None and broker.durable:
        remove_topics(broker, prefix)
