"""A changed model learns beside the old one, from the same topics, until servers answer from it: real processes."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import httpx
import pytest

from headrace.versions import manifests
from stream.sender import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import Broker
from tests.system.loop import KINDS, Loop
from tests.system.process_factory import headrace

TWO_LAYERS = {"num_layers": 2, "model_width": 16, "qk_width": 8, "value_width": 8, "item_width": 16}
AT_ALL = ("--worse", "0.9")
"""Of 600 actions, what two trainers measure says little."""


def on_loop(loop: Loop, *words: str) -> subprocess.CompletedProcess[str]:
    return headrace(*words, HEADRACE_CONFIG=str(loop.path), COLUMNS="200")


def line_of(loop: Loop) -> str:
    line = httpx.get(f"http://127.0.0.1:{loop.settings.serving.port}/readyz", timeout=60).json()["line"]
    assert isinstance(line, str)
    return line


def line_of_page(loop: Loop) -> str:
    """The line in the first point that the page gets next."""
    url = f"http://127.0.0.1:{loop.settings.serving.port}/events"
    with httpx.stream("GET", url, timeout=60) as stream:
        told = next(line for line in stream.iter_lines() if line.startswith("data: {"))
    line = json.loads(told.removeprefix("data: "))["line"]
    assert isinstance(line, str)
    return line


@pytest.mark.slow
def test_servers_move_to_a_new_line_when_it_is_as_good_and_back_when_told(
    kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    actions = World(WorldConfig(seed=3, num_users=20, num_items=50, kinds=tuple(KINDS))).actions()
    with (
        Loop(kafka.bootstrap, topic_prefix, tmp_path / "old", serving={"guard_min_targets": 20}) as old,
        Loop(kafka.bootstrap, topic_prefix, tmp_path / "new", kafka={"line": "deep"}, model=TWO_LAYERS) as new,
    ):
        refused = on_loop(old, "switch", "deep")
        assert refused.returncode == 1
        assert "is its trainer running" in refused.stderr

        old.start("worker", "trainer", "server")
        send_actions(itertools.islice(actions, 600), old.settings.kafka)
        old.wait_until(lambda: bool(old.server.version()), 120, "a first version")
        new.start("trainer")
        new.wait_until(lambda: learned(new) > 0, 120, "a first version beside it")
        moved = on_loop(old, "switch", "deep", "--when-as-good", *AT_ALL, "--reason", "two layers")
        assert moved.returncode == 0, moved.stdout + moved.stderr
        assert "servers follow the versions of line deep" in moved.stdout
        old.wait_until(lambda: line_of(old) == "deep", 60, "the server to have read the order")
        old.wait_until(lambda: line_of_page(old) == "deep", 60, "the page to show that line")
        assert " of line deep" in on_loop(old, "lag", "--once").stdout
        assert "line deep" in on_loop(old, "versions").stdout
        for command in (("lag", "--once"), ("versions",)):
            assert "line deep" not in on_loop(old, *command, "--line", "main").stdout

        before = max(learned(old), learned(new))
        send_actions(itertools.islice(actions, 200), old.settings.kafka)
        old.wait_until(lambda: learned(old) > before, 60, "the old line to learn what came after the move")
        new.wait_until(lambda: learned(new) > before, 60, "the new line to learn it too")
        old.wait_until(lambda: old.server.version()["num_interactions"] > before, 60, "the server to answer from it")
        back = on_loop(old, "switch", "main")
        assert back.returncode == 0, back.stderr
        old.wait_until(lambda: line_of(old) == "", 60, "the server to be back")
        new.group.check()


def learned(loop: Loop) -> int:
    """Interactions that a line's newest version has learned; 0 if it has none."""
    return max((each.num_interactions for each in manifests(loop.settings)), default=0)
