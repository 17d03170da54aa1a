"""What people are told while a process hangs or the broker is away: ages that grow, and who is silent."""

from __future__ import annotations

import os
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from headrace.lag import watch
from headrace.processes import Child
from stream.replay import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import Broker, free_port
from tests.system.loop import KINDS, Loop

RATE = 30.0
MOST_S = 3.5
"""More than any stage is behind while everybody works; a report is stale after three seconds."""
Ages = dict[str, float]


class Told:
    """What ``headrace lag --once --max-seconds`` says of a loop."""

    def __init__(self, loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
        self._loop, self._capsys = loop, capsys
        self.line = ""

    def ages(self) -> Ages:
        """Each stage that is further behind than `MOST_S`, and ``message`` if the newest one is that old."""
        status = watch(self._loop.settings, once=True, max_s=MOST_S)
        said = self._capsys.readouterr()
        self.line = said.out
        found = re.findall(r"(\w+) ([\d.,]+) s", said.err.partition("got ")[2])
        assert bool(found) == (status == 1), said.err
        return {name: float(age.replace(",", "")) for name, age in found}

    def wait_for_growing(self, *names: str) -> None:
        """Until all of these are too old, and then older."""
        first = Ages()

        def grow() -> bool:
            now = self.ages()
            if not first and all(name in now for name in names):
                first.update(now)
            return bool(first) and all(now.get(name, 0.0) > first[name] + 0.5 for name in names)

        self._loop.wait_until(grow, 60, f"the ages of {names} to grow; told: {self.line}")

    def wait_for_words(self, *words: str) -> None:
        """Until the line says all of these."""

        def says() -> bool:
            self.ages()
            return all(each in self.line for each in words)

        self._loop.wait_until(says, 60, f"{words} in the line")

    def wait_for_nothing(self) -> None:
        """Until nothing is too old."""
        self._loop.wait_until(lambda: not self.ages(), 60, "all to have caught up")


@contextmanager
def stopped(*children: Child) -> Iterator[None]:
    """Processes that hang."""
    for each in children:
        os.kill(each.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in children:
            os.kill(each.pid, signal.SIGCONT)


@contextmanager
def traffic(loop: Loop) -> Iterator[None]:
    """A world's actions, until the block ends."""
    over = threading.Event()
    config = WorldConfig(seed=7, num_users=50, num_items=60, kinds=tuple(KINDS), actions_per_s=RATE)

    def actions() -> Iterator[dict[str, object]]:
        for action in World(config).actions():
            if over.is_set():
                return
            yield action

    thread = threading.Thread(target=lambda: send_actions(actions(), loop.settings.kafka, rate=RATE), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def gauges(port: int) -> Ages:
    """The metrics of a process; labels are part of the names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


@pytest.mark.slow
def test_whoever_is_away_is_named_and_what_is_not_known_grows_older(
    durable_kafka: Broker, topic_prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = {"trainer": free_port(), "worker": free_port()}
    sections = {"trainer": {"metrics_port": ports["trainer"]}, "stream": {"metrics_port": ports["worker"]}}
    with ExitStack() as stack:
        loop = stack.enter_context(Loop(durable_kafka.bootstrap, topic_prefix, tmp_path, **sections))
        children = loop.start("worker", "trainer", "server")
        stack.enter_context(traffic(loop))
        told = Told(loop, capsys)
        loop.wait_until(lambda: bool(loop.server.version()), 60, "a first version to be served")
        told.wait_for_nothing()

        with stopped(children["worker"], children["server"]):
            told.wait_for_growing("ingest", "serve")
            told.wait_for_words("; worker worker-", f"; server server-{topic_prefix} silent for ", "servers: 0")
        told.wait_for_nothing()

        with stopped(children["trainer"]):
            told.wait_for_growing("message", "train", "publish")
            told.wait_for_words(" OLD (")
        told.wait_for_nothing()

        durable_kafka.kill()
        grows_without_broker(loop, ports)
        durable_kafka.restart()
        told.wait_for_nothing()


def grows_without_broker(loop: Loop, ports: dict[str, int]) -> None:
    """Wait until the gauges say for how long nothing has been heard."""
    wanted: dict[str, Callable[[], Ages]] = {
        "headrace_broker_silence_seconds": lambda: gauges(ports["trainer"]),
        'headrace_stage_lag_seconds{stage="ingest"}': lambda: gauges(ports["trainer"]),
        'headrace_stage_lag_seconds{stage="train"}': lambda: gauges(ports["trainer"]),
        'headrace_stage_lag_seconds{stage="serve"}': lambda: gauges(ports["trainer"]),
        "headrace_worker_broker_silence_seconds": lambda: gauges(ports["worker"]),
    }
    loop.wait_until(lambda: all(read()[name] > MOST_S for name, read in wanted.items()), 60, "every gauge to grow")
