"""A full disk: one line, nothing half written, and a normal start once there is space again."""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.processes import Child
from stream.sender import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import REPOSITORY, Broker, wait_until
from tests.system.loop import KINDS, Loop, explain, is_learned

NO_ROOM = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (7, 7))  # torch tests its temporary folder by writing four bytes
from headrace.command import run
sys.exit(run("headrace", arguments=sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_process_that_finds_no_room_to_write_ends_with_one_line(
    kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    with Loop(kafka.bootstrap, topic_prefix, tmp_path) as loop:

        def start(command: str) -> subprocess.CompletedProcess[str]:
            arguments = [sys.executable, "-c", NO_ROOM, command, "--config", str(loop.path)]
            return subprocess.run(
                arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
            )  # fmt: skip

        with ThreadPoolExecutor(2) as pool:
            ended = dict(zip(("worker", "train"), pool.map(start, ("worker", "train")), strict=True))
        for command, done in ended.items():
            assert done.returncode == 1, (command, done.stderr[-2000:])
            assert "Traceback" not in done.stderr + done.stdout, (command, done.stderr[-2000:])
            told = [line for line in done.stderr.splitlines() if line.startswith("headrace ")]
            assert len(told) == 1, (command, done.stderr[-2000:])
            assert "File too large" in told[0]
        loop.start("worker", "trainer")
        loop.wait_until(
            lambda: all(words in (tmp_path / f"{name}.log").read_text() for name, words in AT_WORK), 60, "both at work"
        )


@pytest.mark.slow
def test_a_disk_that_fills_up_under_running_processes_ends_them_with_one_line_and_loses_nothing(
    kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    """Every file may grow to what RocksDB's log and a journal reach soon; then the limit is lifted by a new start."""
    actions = World(WorldConfig(seed=2, num_users=30, num_items=50, kinds=tuple(KINDS))).actions()
    with Loop(kafka.bootstrap, topic_prefix, tmp_path) as loop:
        running = loop.start("worker", "trainer")
        send_actions(itertools.islice(actions, 200), loop.settings.kafka)
        loop.wait_until(lambda: '"event": "training"' in (tmp_path / "trainer.log").read_text(), 60, "training")
        for name in ("trainer", "worker"):  # without a worker, the trainer would have nothing to write
            child = running[name]
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (FULL, FULL))

            def has_ended(child: Child = child) -> bool:
                send_actions(itertools.islice(actions, 100), loop.settings.kafka)
                return not child.is_running()

            wait_until(has_ended, 120, f"the {name} to find no room")
            log = (tmp_path / f"{name}.log").read_text()
            assert child.wait(10) == 1, log[-2000:]
            assert "Traceback" not in log, log[-2000:]
            assert "File too large" in log.splitlines()[-1]
        loop.group.children.clear()
        loop.start("worker", "trainer")
        report = loop.audit_when(is_learned, 120)
        assert report.passed, explain(report)
        assert is_learned(report), explain(report)


FULL = 30_000
AT_WORK = (("worker", "partition claimed"), ("trainer", '"event": "training"'))
