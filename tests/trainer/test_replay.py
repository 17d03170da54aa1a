"""Published training can be repeated from the topics, and gives the published weights bit by bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.process_factory import Child
from tests.trainer.stage import SECTIONS, Recount, Stage, weights_of, write_config
from trainer.errors import JournalError, SourceError
from trainer.replay import plan_of
from trainer.replay import replay as repeat
from wire.example import interactions_of, rows_of

Make = Callable[..., Stage]
DELTAS = {"base_every": 1000}
OTHERWISE: dict[str, dict[str, Any]] = {
    "model": {"block": "fuxi", "num_layers": 2},
    "trainer": {"top_dropout_ratio": 0.5, "sgd_after_steps": 9},
}


def run_once(made: Stage, broken: tuple[str, ...] = (), num_versions: int = 4) -> None:
    """Run a trainer that publishes some versions, the last ones deltas, and ends normally."""
    child = made.start(broken=broken)
    made.feed_until(lambda: len(made.recount().versions) >= num_versions, "versions")
    made.wait_published()
    assert child.stop() == 0


def replay(made: Stage, **sections: dict[str, object]) -> Child:
    """Run ``--replay``, with some keys changed."""
    kafka = {"bootstrap": made.broker.bootstrap, "prefix": made.settings.kafka.prefix, "partitions": 3}
    path = write_config(made.folder / "replay.toml", kafka=kafka, **sections)
    return made.factory.start(["--config", str(path), "--replay"])


def lines(child: Child) -> str:
    return child.log().splitlines()[-1]


WAITING: dict[str, dict[str, Any]] = {"trainer": {"feedback": "wait", "feedback_window_s": 0.02}}
"""The last twenty actions wait."""
HALF: dict[str, dict[str, Any]] = {"trainer": {"row_precision": "float16"}}


@pytest.mark.parametrize(
    "changes", [{}, OTHERWISE, WAITING, HALF],
    ids=["HSTU", "FuXi-alpha, LSRM's dropout and optimisers", "interactions that wait for their feedback",
         "rows of 16 bits"],
)  # fmt: skip
def test_a_replay_after_kills_gives_the_published_bits(stage: Make, changes: dict[str, dict[str, Any]]) -> None:
    made = stage(**{**changes, "trainer": {**DELTAS, **changes.get("trainer", {})}})
    for point in ("chunks_sent:2:kill", "learned:7:kill", "published:2:kill"):
        made.live_and_die(point)
    run_once(made, num_versions=8)
    recount = made.recount()
    child = replay(made, **changes)
    assert child.wait() == 0, child.log()
    last = recount.last
    assert recount.last.kind == "delta"
    assert lines(child) == (
        f"version {last.epoch}/{last.number}, {last.next_step} steps, {last.num_interactions} interactions: bit-equal"
    )


def test_an_example_with_other_columns_of_features_is_foreign_to_a_trainer_and_a_replay(stage: Make) -> None:
    made = stage()
    examples = made.make(60)
    ours = next(each for each in examples if each.partition == 0)
    rows = replace(interactions_of(ours.rows), feature_hash=np.ones((len(ours.rows), 3), np.int64))
    made.send([replace(ours, rows=rows_of(rows))], counted=False)
    made.send(examples)
    run_once(made)
    told = [line for line in made.children[-1].log().splitlines() if "skipped a foreign record" in line]
    assert len(told) == 1
    assert "expected (1, 1) features of items and users, got (3, 1)" in told[0]
    child = replay(made)
    assert child.wait() == 0, child.log()
    assert lines(child).endswith("bit-equal")


def test_any_version_that_the_topic_has_can_be_repeated(stage: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = stage(trainer=DELTAS)
    run_once(made)
    settings, (_, earlier, *_) = made.settings, [each.manifest for each in made.recount().versions]
    parts = (settings.model, settings.trainer, settings.kafka, threading.Event())
    assert repeat(*parts, earlier.which) == 0
    assert f"version {earlier.epoch}/{earlier.number}, {earlier.next_step} steps" in capsys.readouterr().out
    with pytest.raises(SourceError, match="expected version 9/9 and the base that it builds on"):
        repeat(*parts, (9, 9))


def test_a_replay_refuses_other_settings(stage: Make) -> None:
    made = stage()
    run_once(made, num_versions=1)
    child = replay(made, trainer={**SECTIONS["trainer"], "dense_lr": 0.5})
    assert child.wait() == 1
    assert "trainer.dense_lr: the published weights were trained with 0.003, the configuration says 0.5" in lines(child)


def test_a_replay_names_what_a_trainer_that_forgets_dirty_rows_got_wrong(stage: Make) -> None:
    made = stage(trainer=DELTAS)
    run_once(made, ("forgets_dirty_rows",))
    child = replay(made)
    assert child.wait() == 1
    assert "DIFFERENT: items." in lines(child)
    with pytest.raises(AssertionError, match="is not the plan's weights"):
        made.check(made.recount())


def test_a_replay_names_what_a_trainer_that_loses_what_waits_got_wrong(stage: Make) -> None:
    made = stage(trainer={**DELTAS, **WAITING["trainer"]})
    made.live_and_die("checkpointed:3:kill")
    run_once(made, ("loses_what_waits",))
    child = replay(made, **WAITING)
    assert child.wait() == 1, child.log()
    assert "DIFFERENT" in lines(child)


def test_a_replay_without_a_topic_of_versions_says_so(stage: Make) -> None:
    made = stage()
    child = replay(made)
    assert child.wait() == 1
    assert "weights topic: expected a base version to compare with, got none" in lines(child)


def test_a_plan_whose_first_steps_are_gone_is_no_plan(stage: Make) -> None:
    made = stage(trainer=DELTAS)
    run_once(made)
    recount: Recount = made.recount()
    with pytest.raises(JournalError, match="of this line of training are gone"):
        plan_of(weights_of(recount.versions), [each.manifest for each in recount.versions[2:]])
