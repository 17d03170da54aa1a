"""The commands of README.md and docs/operations.md, on a running deployment."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from stream.sender import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import Broker
from tests.commands import commands, why_not
from tests.system.loop import KINDS, Loop

ROOT = Path(__file__).resolve().parents[2]
NUM_ACTIONS = 500
RUNS_ON = {
    "worker": "partitions",
    "serve": "answering from version",
    "train": "standby",
    "torchrun": "standby",
    "lag": "learned",
    "kcat": '"stages"',
}
"""Commands that run until they are stopped, and a word that they print when they are at work."""
ORDERLY = ("worker", "train", "serve")
"""Those that end with status 0 when they are stopped."""
SAYS = {
    "doctor": "live: 1 worker, 1 trainer, 1 server", "lag": "interactions/s learned", "topics": "as configured",
    "versions": "version", "audit": "nothing is lost", "forget": "learn", "replay": "bit-equal",
    "dead-letters": "no dead letters", "simulate": "sent 200 actions", "produce": "sent 2 actions", "curl": '"version"',
}  # fmt: skip
ACTION = '{"user": "u17", "item": "i42", "action": "click", "timestamp": %d}\n'


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


def on_loop(line: str, loop: Loop) -> str:
    """The command as the page gives it, for this deployment and not for the one that the page speaks of."""
    file = loop.folder / "actions.jsonl"
    file.write_text("".join(ACTION % (time.time_ns() // 1_000_000 - age_ms) for age_ms in (2000, 1000)))
    ours = {
        "localhost:8080": f"127.0.0.1:{loop.settings.serving.port}", "localhost:29092": loop.settings.kafka.bootstrap,
        "headrace.trainer": f"{loop.settings.kafka.prefix}.trainer", "FILE": str(file),
        "SERVING__PORT=8081": "SERVING__PORT=0", "SERVING__PORT=8082": "SERVING__PORT=0",
        "simulate --rate 500": "simulate --rate 500 --num-actions 200",
    }  # fmt: skip
    for theirs, mine in ours.items():
        line = line.replace(theirs, mine)
    return line


@pytest.mark.parametrize("line", [line for line in commands() if not why_not(line)])
def test_a_command_of_the_pages_does_what_they_say(line: str, loop: Loop) -> None:
    given, command = environment(loop, shlex.split(on_loop(line, loop)))
    name = command[1] if command[0] == "headrace" else command[0]
    modules = {"headrace": ["headrace"], "torchrun": ["torch.distributed.run"]}
    if command[0] in modules:
        command = [sys.executable, "-m", *modules[command[0]], *command[1:]]
    elif shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on PATH")
    if name in RUNS_ON and "--once" not in command:
        said = said_before_its_end(command, given, loop.folder, RUNS_ON[name], orderly=name in ORDERLY)
        assert RUNS_ON[name] in said
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
