"""A full disk: one line, nothing half written, and a normal start once there is space again."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.brokers import REPOSITORY, Broker
from tests.system.loop import Loop

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


AT_WORK = (("worker", "partition claimed"), ("trainer", '"event": "training"'))
