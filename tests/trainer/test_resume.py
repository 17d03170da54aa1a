"""A trainer killed with -9 at any point continues as if it had not been: on the stream, and on a file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Broker, wait_until
from tests.process_factory import Child, ProcessFactory
from tests.trainer.points import FILE_POINTS, POINTS
from tests.trainer.stage import Stage, actions, unequal, write_config
from trainer.checkpoint.reading import Checkpoint, read_checkpoint
from trainer.errors import TrainerError

Make = Callable[..., Stage]
SEED = 5


def newest(folder: Path) -> Path:
    """The newest checkpoint."""
    return max(folder.glob("checkpoint-*"))


def test_killed_at_every_point_it_trains_everything_exactly_once(stage: Make) -> None:
    made, rng = stage(), random.Random(SEED)
    points = [f"{name}:{rng.randint(1, 2) if name != 'claimed' else 1}:kill" for name in POINTS]
    rng.shuffle(points)
    for point in points:
        made.live_and_die(point)
    made.start()
    made.feed(20)
    recount = made.finish()
    assert len({each.manifest.lineage for each in recount.versions}) == 1
    assert recount.last.epoch == len(points)
    assert recount.stale == []


SLOWLY = ("half_a_piece:9:kill", "checkpoint_hidden:3:kill", "checkpointed:3:kill", "half_of_the_chunks:3:kill")


def test_killed_while_slices_are_copied_between_steps_it_trains_everything_exactly_once(stage: Make) -> None:
    made, slow = stage(), ("copies_little_at_a_time",)
    for point in SLOWLY:
        made.live_and_die(point, slow)
    made.start(broken=slow)
    made.feed(20)
    assert made.finish().stale == []


def test_killed_at_random_moments_it_trains_everything_exactly_once(stage: Make) -> None:
    made, rng = stage(), random.Random(SEED)
    for _ in range(4):
        child = made.start()
        moment = rng.choice(["epoch claimed", "training", "a step", "a version"])
        extra = rng.randrange(8)
        num_steps, num_records = len(made.decided) + extra, made.recount().num_records

        def is_time(
            child: Child = child,
            moment: str = moment,
            num_steps: int = num_steps,
            num_records: int = num_records + extra,
        ) -> bool:
            if moment == "a step":
                made.note_journal()
                return len(made.decided) > num_steps
            return made.recount().num_records > num_records if moment == "a version" else moment in child.log()

        made.feed_until(is_time, moment)
        child.kill()
        made.note_journal()
    made.start()
    made.finish()


def test_a_wiped_disk_follows_the_published_steps(stage: Make) -> None:
    made = stage()
    made.live_and_die("published:3:kill")
    made.decided.clear()
    shutil.rmtree(made.checkpoints())
    child = made.start()
    made.feed(20)
    recount = made.finish()
    assert "following the published steps from the first one" in child.log()
    assert len({each.manifest.lineage for each in recount.versions}) == 1


@pytest.mark.parametrize("part", ["arrays.safetensors", "meta.json"])
def test_a_corrupt_newest_checkpoint_is_passed_over_aloud(stage: Make, part: str) -> None:
    made = stage()
    made.live_and_die("checkpointed:4:kill")
    path = newest(made.checkpoints()) / part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    child = made.start()
    made.finish()
    assert f"{newest(made.checkpoints()).parent}/checkpoint-" in child.log()
    assert f"{part} is damaged" in child.log()
    assert "falling back to the previous one" in child.log()


def test_when_all_checkpoints_are_corrupt_it_says_so_and_stops(stage: Make) -> None:
    made = stage()
    made.live_and_die("checkpointed:3:kill")
    found = list(made.checkpoints().glob("checkpoint-*/meta.json"))  # the newest may be increments on the others
    for each in found:
        each.write_bytes(each.read_bytes()[:-40])
    child = made.start()
    assert child.wait() == 1
    assert f"none of its {len(found)} checkpoints can be read; restore one, or name an empty folder" in child.log()


def test_a_broker_that_dies_while_it_trains_loses_nothing(stage: Make, durable_kafka: Broker) -> None:
    made = stage()
    child = made.start()
    made.feed_until(lambda: bool(made.recount().versions), "a version")
    made.feed(30)
    durable_kafka.kill()
    durable_kafka.restart()
    made.feed(60)
    assert child.status is None, child.log()
    recount = made.finish()
    assert {each.manifest.epoch for each in recount.versions} == {0}, "one process all the time"


def decide_slowly_and_die(made: Stage, broken: tuple[str, ...] = ()) -> None:
    """Train small steps, none of them in a version or a checkpoint; after the kill all examples are there at once."""
    child = made.start(broken=broken)
    for num_steps in range(1, 7):
        made.feed(2)
        wait_until(lambda num=num_steps: _num_decided(made) >= num, 60, "a step in the journal", every_s=0.01)
    child.kill()
    made.note_journal()
    made.start(broken=broken)
    made.feed(20)


def _num_decided(made: Stage) -> int:
    made.note_journal()
    return len(made.decided)


def grow_a_plan(made: Stage, num_steps: int = 12) -> None:
    """Run a trainer that publishes so many steps, writes no checkpoint after its first step, and is killed."""
    child = made.start()
    first = made.recount().last.next_step if made.recount().versions else 0

    def is_grown() -> bool:
        versions = made.recount().versions
        return bool(versions) and versions[-1].manifest.next_step >= first + num_steps

    made.feed_until(is_grown, "published steps")
    child.kill()
    made.note_journal()


def interrupt_recovery(made: Stage, points: list[str], broken: tuple[str, ...] = ()) -> None:
    """Run trainers that are each interrupted while they repeat recorded steps; then one that is not."""
    for point in points:
        child = made.start(broken=broken, point=point)
        ended = child.wait()
        assert ended == (0 if point.endswith("term") else -9), f"{point}: ended with {ended}:\n{child.log()[-3000:]}"
        assert "repeating recorded steps" in child.log() or point.startswith("claimed"), child.log()
        made.note_journal()
    made.start(broken=broken)
    made.feed(20)


NO_CHECKPOINTS = {"checkpoint_every_steps": 0, "checkpoint_every_s": 3600.0}
IN_RECOVERY = ("claimed", "journal_started", "journalled", "learned", "half_a_checkpoint", "checkpoint_hidden",
               "checkpoint_visible", "checkpointed")  # fmt: skip
"""Points that a trainer passes while it repeats recorded steps."""


def test_a_recovery_interrupted_at_every_point_loses_no_step(stage: Make) -> None:
    made, rng = stage(trainer=NO_CHECKPOINTS), random.Random(SEED)
    rare, often = made.config_path.read_text(), "checkpoint_every_steps = 3"
    points = rng.sample(IN_RECOVERY, len(IN_RECOVERY))
    for some in (points[::2], points[1::2]):
        made.config_path.write_text(rare)
        grow_a_plan(made, 16)
        made.config_path.write_text(rare.replace("checkpoint_every_steps = 0", often))
        interrupt_recovery(made, [f"{name}:1:kill" for name in some])
        made.wait_published()
        made.children[-1].kill()
    made.start()
    recount = made.finish()
    assert len({each.manifest.lineage for each in recount.versions}) == 1


def test_signals_during_a_recovery_lose_no_step(stage: Make) -> None:
    made = stage(trainer=NO_CHECKPOINTS)
    grow_a_plan(made)
    interrupt_recovery(made, ["learned:2:term", "learned:1:kill", "learned:3:term"])
    recount = made.finish()
    assert len({each.manifest.lineage for each in recount.versions}) == 1


def test_signals_during_the_recovery_of_a_wiped_disk_lose_no_step(stage: Make) -> None:
    made = stage(trainer=NO_CHECKPOINTS)
    grow_a_plan(made)
    shutil.rmtree(made.checkpoints())
    made.decided.clear()
    interrupt_recovery(made, ["journal_started:1:kill", "learned:2:term", "learned:2:kill"])
    made.finish()


def test_a_trainer_that_forgets_the_steps_it_has_yet_to_repeat_is_caught(stage: Make) -> None:
    made = stage(trainer=NO_CHECKPOINTS)
    grow_a_plan(made)

    def recover() -> None:
        interrupt_recovery(made, ["learned:2:term"], ("forgets_what_it_has_yet_to_repeat",))
        made.finish()

    with pytest.raises((AssertionError, TrainerError), match=r"expected examples|not each once|was recorded as|ended"):
        recover()


RARELY = {"publish_every_s": 1.5, "checkpoint_every_steps": 1000}


def test_what_was_decided_before_a_kill_is_done_again(stage: Make) -> None:
    made = stage(trainer=RARELY)
    decide_slowly_and_die(made)
    made.finish()
    assert "repeating recorded steps" in made.children[-1].log()


def test_a_trainer_that_ignores_its_journal_is_caught(stage: Make) -> None:
    made = stage(trainer=RARELY)
    decide_slowly_and_die(made, ("ignores_the_journal",))
    made.wait_published()
    with pytest.raises(AssertionError, match="was recorded as"):
        made.note_journal()


def live_broken(made: Stage, broken: str, points: list[str]) -> None:
    for point in points:
        made.live_and_die(point, (broken,))
    for _ in range(4):  # so that feedback to a step's interactions has arrived before the step is trained
        made.feed(30)
    made.start(broken=(broken,))
    made.feed(60)
    made.finish()


@pytest.mark.parametrize(
    ("broken", "points", "caught"),
    [
        ("checkpoints_without_positions", ["checkpointed:3:kill"], "expected examples|not each once|was recorded as"),
        ("trains_what_is_stale", [], "not each once|in order|expected examples"),
        ("forgets_histories", ["checkpointed:3:kill"], "not the plan's weights"),
        ("folds_what_arrives", [], "not the plan's weights"),
        ("copies_once", ["checkpointed:3:kill"], "not the plan's weights|not finite|KeyError: .kept_log"),
        ("rounds_bases_as_if_they_were_deltas", ["published:7:kill"], "not the plan's weights: .*memory.weight"),
    ],
)
def test_a_broken_trainer_is_caught(stage: Make, broken: str, points: list[str], caught: str) -> None:
    made = stage()
    with pytest.raises((AssertionError, TrainerError), match=caught):
        live_broken(made, broken, points)


def test_a_trainer_that_ignores_the_plan_is_caught(stage: Make) -> None:
    """Examples that came little by little are all there after the kill: decided again, they make other steps."""
    made = stage(trainer=NO_CHECKPOINTS)
    grow_a_plan(made)
    num_versions = len(made.recount().versions)
    made.start(broken=("ignores_the_plan",))
    made.feed_until(lambda: len(made.recount().versions) > num_versions, "steps behind those that were published")
    with pytest.raises(AssertionError, match=r"not the plan's weights|decided again|not each once|was recorded as"):
        made.finish()


def leave_a_gap(made: Stage, broken: tuple[str, ...] = ()) -> Child:
    """Leave out a number; returns a trainer that finds the gap."""
    made.feed(20)
    examples = made.make(30)
    lost = next(index for index, each in enumerate(examples) if each.number > len(made.sent[each.partition]))
    made.send(examples[:lost] + examples[lost + 1 :])
    made.sent[examples[lost].partition].insert(examples[lost].number, examples[lost])
    return made.start(broken=broken)


def test_a_gap_in_the_numbers_stops_it_with_advice(stage: Make) -> None:
    made = stage()
    child = leave_a_gap(made)
    assert child.wait() == 1
    last = child.log().splitlines()[-1]
    assert last.startswith("headrace train: ")
    assert "1 were compacted or deleted before this trainer read them" in last
    assert 'set trainer.on_gap = "skip"' in last


def test_many_gaps_are_counted_and_told_in_two_lines(stage: Make) -> None:
    made = stage(trainer={"on_gap": "skip"})
    made.feed(20)
    examples = made.make(200)
    lost = set(range(20, len(examples) - 1, 10))
    made.send([each for index, each in enumerate(examples) if index not in lost], counted=False)
    child = made.start()
    wait_until(lambda: "examples lost so far" in child.log(), 60, "what was lost to be summed up", 0.2)
    assert child.stop() == 0
    told = [json.loads(line) for line in child.log().splitlines() if '"examples lost' in line]
    assert 2 <= len(told) <= 4, "not a line for each"
    assert told[-1]["num_examples"] == told[-1]["num_gaps"] == len(lost)


def test_a_trainer_that_passes_over_gaps_is_caught(stage: Make) -> None:
    made = stage()
    leave_a_gap(made, ("passes_over_gaps",))
    with pytest.raises(AssertionError, match="not each once"):
        made.finish()


class FileRun:
    """Repeated runs of ``--file`` with checkpoints."""

    def __init__(self, folder: Path, factory: ProcessFactory, **settings: Any) -> None:
        self._factory, self._folder = factory, folder
        self._config = write_config(folder / "headrace.toml", trainer=settings)
        self._data = folder / "actions.jsonl"
        stream = actions(seed=3)
        self._data.write_text("".join(json.dumps(next(stream)) + "\n" for _ in range(800)))

    def start(self, name: str, point: str = "", broken: tuple[str, ...] = (), config: Path | None = None) -> Child:
        given = ["--config", config or self._config, "--file", self._data, "--json"]
        given += ["--checkpoint-dir", self._folder / name]
        return self._factory.start([str(each) for each in given], broken, point)

    def outcome(self, name: str, child: Child) -> tuple[Checkpoint, dict[str, object]]:
        """A run's last checkpoint and report."""
        assert child.wait(60) == 0, child.log()
        report = json.loads(child.log().splitlines()[-1])
        return read_checkpoint(newest(self._folder / name)), report["metrics"]


def test_a_file_resumed_after_kills_gives_the_bits_of_an_uninterrupted_run(
    tmp_path: Path, factory: ProcessFactory
) -> None:
    run, rng = FileRun(tmp_path, factory), random.Random(SEED)
    for name in rng.sample(FILE_POINTS, len(FILE_POINTS)):
        killed = run.start("killed", f"{name}:{rng.randint(1, 4)}:kill")
        assert killed.wait() == -9, f"{name}: {killed.log()}"
    checkpoint, metrics = run.outcome("killed", run.start("killed"))
    expected, expected_metrics = run.outcome("whole", run.start("whole"))
    assert checkpoint.step == expected.step
    assert unequal(checkpoint.arrays, expected.arrays, but=()) == []
    assert metrics == expected_metrics


@pytest.mark.parametrize("name", ["checkpoints_without_positions", "rounds_rows_by_the_number_of_calls"])
def test_a_file_resumed_by_a_broken_trainer_differs(tmp_path: Path, factory: ProcessFactory, name: str) -> None:
    run, broken = FileRun(tmp_path, factory, row_precision="float16"), (name,)
    expected, _ = run.outcome("whole", run.start("whole", broken=broken))
    assert run.start("killed", "checkpointed:3:kill", broken).wait() == -9
    child = run.start("killed", broken=broken)
    if child.wait() == 0:
        checkpoint = read_checkpoint(newest(tmp_path / "killed"))
        assert unequal(checkpoint.arrays, expected.arrays)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("trainer", "file_take", 7), ("sequence", "segment_len", 3), ("sequence", "join_window_s", 60.0)],
)
def test_a_file_is_not_resumed_with_settings_that_would_give_other_examples(
    tmp_path: Path, factory: ProcessFactory, section: str, key: str, value: object
) -> None:
    run = FileRun(tmp_path, factory)
    assert run.start("killed", "checkpointed:3:kill").wait() == -9
    other = write_config(tmp_path / "other.toml", **{section: {key: value}})
    child = run.start("killed", config=other)
    assert child.wait() == 1
    last = child.log().splitlines()[-1]
    assert last.startswith(f"headrace train: {section}.{key}: the checkpoint's position belongs to ")
    assert f"now it is {value!r}" in last
    assert run.start("killed").wait() == 0, "put back, it goes on"


def test_a_file_is_not_resumed_when_it_has_changed(tmp_path: Path, factory: ProcessFactory) -> None:
    run = FileRun(tmp_path, factory)
    assert run.start("killed", "checkpointed:3:kill").wait() == -9
    with (tmp_path / "actions.jsonl").open("a") as file:
        file.write("\n")
    child = run.start("killed")
    assert child.wait() == 1
    assert "--file: the checkpoint's position belongs to" in child.log().splitlines()[-1]


def test_batches_may_be_sized_otherwise_after_a_restart(tmp_path: Path, factory: ProcessFactory) -> None:
    run = FileRun(tmp_path, factory)
    assert run.start("killed", "checkpointed:3:kill").wait() == -9
    other = write_config(tmp_path / "other.toml", trainer={"max_step_targets": 5, "checkpoint_every_steps": 2})
    child = run.start("killed", config=other)
    assert child.wait() == 0
    whole = run.start("whole")
    assert whole.wait() == 0
    counted = [json.loads(each.log().splitlines()[-1])["interactions_trained"] for each in (child, whole)]
    assert counted[0] == counted[1], "each interaction once, whatever the batches"
