"""Clocks that are hours off, and that jump while it runs: nothing is lost, refused or considered dead."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.audit import audit
from stream.sender import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import Broker
from tests.system.loop import KINDS, Loop, explain, is_learned
from wire.kafka.consumer import connect, follow
from wire.lag import decode_lag
from wire.topics import Topics

HOURS = 3600.0
STEPS = ({"worker": 2 * HOURS, "trainer": -2 * HOURS, "server": 2 * HOURS},
         {"worker": -2 * HOURS, "trainer": -2 * HOURS, "server": -5 * HOURS},
         {"worker": 0.0, "trainer": 3 * HOURS, "server": 0.0})  # fmt: skip
"""How far each process's clock is ahead, one value after the other."""
COMMANDS = {"worker": "worker", "trainer": "train", "server": "serve"}


def lag_messages(loop: Loop) -> Iterator[dict[str, Any]]:
    consumer = connect(loop.settings.kafka)
    try:
        for record in follow(consumer, Topics.under(loop.settings.kafka.prefix).lag):
            if record is not None and (message := decode_lag(record.value)) is not None:
                yield message
    finally:
        consumer.close()


def is_well(message: dict[str, Any]) -> bool:
    """Whether every process is heard, and nothing is hours behind."""
    behind_s = max(stage["lag_s"] for stage in message["stages"].values())
    silent_s = max(each["silent_s"] for each in message["processes"])
    return message["num_servers"] == 1 and len(message["processes"]) == 3 and max(behind_s, silent_s) < 60.0


@pytest.mark.slow
def test_a_loop_whose_clocks_disagree_by_hours_and_step_learns_and_serves_everything(
    durable_kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    with Loop(durable_kafka.bootstrap, topic_prefix, tmp_path) as loop:
        clocks = {name: tmp_path / f"{name}.clock" for name in COMMANDS}

        def set_clocks(ahead_s: dict[str, float]) -> None:
            for name, seconds in ahead_s.items():
                clocks[name].write_text(str(seconds))

        set_clocks(STEPS[0])
        for name, command in COMMANDS.items():
            arguments = (str(clocks[name]), command, "--config", str(loop.path))
            loop.group.start(name, "-m", "tests.system.skewed", *arguments)
        world = World(WorldConfig(seed=4, num_users=20, num_items=40, kinds=tuple(KINDS))).actions()

        last: list[int | None] = [None]

        def is_served() -> bool:
            served = loop.server.version().get("num_interactions")
            if served != last[0]:  # more is being learned, and an audit reads every topic
                last[0] = served
                return False
            report = audit(loop.settings)
            assert report.passed, explain(report)
            return is_learned(report) and served == report.sums["num_trained"]

        for step in STEPS:
            set_clocks(step)
            send_actions(itertools.islice(world, 150), loop.settings.kafka)
            loop.wait_until(is_served, 90, f"everything to be served with clocks {step}")
            heard = itertools.islice(lag_messages(loop), 10)
            assert any(is_well(message) for message in heard), "within ten messages"
