"""Every command of docs/operations.md, on a running deployment."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from stream.replay import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import Broker
from tests.system.loop import KINDS, Loop

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operations.md"
NUM_ACTIONS = 500
RUNS_ON = {"worker": "partitions", "train": "standby", "torchrun": "standby"}
"""Commands that run until they are stopped, and a word that they print when they are at work."""
SAYS = {
    "doctor": "live: 1 worker, 1 trainer, 1 server", "lag": "interactions/s learned", "topics": "as configured",
    "versions": "version", "audit": "nothing is lost", "forget": "learn", "replay": "bit-equal",
}  # fmt: skip


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def loop(kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    with Loop(kafka.bootstrap, "operations", tmp_path_factory.mktemp("operations")) as running:
        running.start("worker", "trainer", "server")
        world = World(WorldConfig(seed=3, num_users=20, num_items=50, kinds=tuple(KINDS)))
        send_actions(itertools.islice(world.actions(), NUM_ACTIONS), running.settings.kafka)
        running.wait_until(lambda: bool(running.server.version()), 120, "a first version")
        yield running


def environment(loop: Loop, words: list[str]) -> tuple[dict[str, str], list[str]]:
    """As in a shell, NAME=value before the command are its environment."""
    given = dict(itertools.takewhile(lambda pair: len(pair) == 2, (word.split("=", 1) for word in words)))
    ours = {"HEADRACE_CONFIG": str(loop.path), "COLUMNS": "200", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **ours, **given}, words[len(given) :]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_page_does_what_it_says(line: str, loop: Loop) -> None:
    given, (program, name, *arguments) = environment(loop, shlex.split(line))
    if program == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", name, *arguments]
        assert RUNS_ON[program] in said_before_its_end(command, given, loop.folder, RUNS_ON[program], orderly=False)
        return
    assert program == "headrace"
    command = [sys.executable, "-m", "headrace", name, *arguments]
    if name in RUNS_ON:
        assert RUNS_ON[name] in said_before_its_end(command, given, loop.folder, RUNS_ON[name])
        return
    done = subprocess.run(command, env=given, cwd=loop.folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAYS[name] in done.stdout


def said_before_its_end(
    command: list[str], given: dict[str, str], folder: Path, word: str, *, orderly: bool = True
) -> str:
    """The output up to the word; then the command is stopped, and ends. ``orderly``: with status 0."""
    with subprocess.Popen(
        command, env=given, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            said = "".join(until(process.stdout, word))
            process.send_signal(signal.SIGTERM)
            said += process.stdout.read()
            assert process.wait(60) == 0 or not orderly, said
        finally:
            process.kill()
    return said


def until(lines: Iterable[str], word: str) -> Iterator[str]:
    """The lines up to the first one with the word."""
    for line in lines:
        yield line
        if word in line:
            return
