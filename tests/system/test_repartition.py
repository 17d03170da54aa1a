"""A whole deployment goes on with another number of partitions: users, weights and all counts, by real processes."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from headrace.audit import audit
from headrace.versions import manifests
from stream.sender import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import Broker
from tests.system.loop import KINDS, Loop, explain, is_learned
from tests.system.process_factory import headrace

NUM_ACTIONS = 500


def repartition(old: Loop, new: Loop) -> subprocess.CompletedProcess[str]:
    return headrace("repartition", str(new.path), "--config", str(old.path))


@pytest.mark.slow
def test_a_deployment_goes_on_with_another_number_of_partitions(
    kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    config = WorldConfig(seed=3, num_users=20, num_items=50, kinds=tuple(KINDS), actions_per_s=30.0)
    actions = list(itertools.islice(World(config).actions(), 2 * NUM_ACTIONS))
    with (
        Loop(kafka.bootstrap, topic_prefix, tmp_path / "old", trainer={"checkpoint_every_s": 1e6}) as old,
        Loop(kafka.bootstrap, f"{topic_prefix}-next", tmp_path / "new", kafka={"partitions": 3}) as new,
    ):
        running = old.start("worker", "trainer")
        send_actions(iter(actions[:NUM_ACTIONS]), old.settings.kafka)
        send_actions(iter(actions[NUM_ACTIONS:]), new.settings.kafka)  # nobody reads them yet
        before = old.audit_when(is_learned, 120)
        assert before.passed, explain(before)
        assert is_learned(before), explain(before)
        running["worker"].stop(60)
        early = repartition(old, new)
        assert early.returncode == 1, "the trainer has not written its last checkpoint"
        assert "let the old trainer learn them, and stop it" in early.stderr
        refused = headrace("worker", "--config", str(new.path))
        assert refused.returncode == 1
        assert "headrace repartition has not finished" in refused.stderr
        running["trainer"].stop(60)

        done = repartition(old, new)
        assert done.returncode == 0, done.stdout + done.stderr
        last = manifests(old.settings)[-1]
        assert f"the trainer goes on at step {last.next_step}" in done.stdout
        new.start("worker", "trainer")
        after = new.audit_when(is_learned, 120)
        assert after.passed, explain(after)
        assert is_learned(after), explain(after)
        newest = manifests(new.settings)[-1]
        assert newest.lineage == last.lineage
        assert newest.num_interactions == last.num_interactions + after.sums["num_trained"]
        assert newest.first_step >= last.next_step
        assert audit(old.settings).passed
