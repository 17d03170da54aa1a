"""Processes that train together learn what one learns, to the bit, whichever of them is killed, and at any point."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import trainer.learner.step
from headrace.command import WRONG_CONFIGURATION
from tests.brokers import REPOSITORY, free_port, wait_until
from tests.process_factory import Child, ProcessFactory
from tests.trainer.broken import divides_small_catalogues
from tests.trainer.points import FILE_POINTS, RANK_POINTS
from tests.trainer.stage import NUM_PARTITIONS, RANKED_SO_FAR, Stage, actions, unequal, write_config
from trainer.checkpoint.reading import Checkpoint, read_checkpoint
from trainer.ranks.agreement import BUILD, GPU, LEVEL, MACHINE, TORCH, _difference
from trainer.ranks.messages import own_gpu
from wire.config import KafkaConfig
from wire.errors import ConfigError
from wire.example import Mark
from wire.kafka.addresses import accepts_connections

Make = Callable[..., Stage]
Outcome = tuple[Checkpoint, Any]
Alone = Callable[..., Outcome]
SEED, SHARDS = 5, 4
DIVIDED = ("divides_small_catalogues",)
HALF = {"row_precision": "bfloat16"}
"""A build whose tables are whole in some steps, and divided among the ranks in the others."""


def place_of(size: int) -> Callable[[int], dict[str, str]]:
    """What torchrun would tell each rank of a new group."""
    where = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return lambda rank: {**where, "RANK": str(rank)} if size > 1 else {}


class RankRun:
    """Groups of processes that train on one file, started as torchrun starts them."""

    def __init__(self, folder: Path, factory: ProcessFactory, num_actions: int = 600, **settings: Any) -> None:
        self._factory, self.folder = factory, folder
        trainer = {"shards": SHARDS, "rank_timeout_s": 60.0, "whole_table_bytes": 0, **settings}
        self.config = write_config(folder / "headrace.toml", trainer=trainer)
        self.data = folder / "actions.jsonl"
        stream = actions(seed=3)
        self.data.write_text("".join(json.dumps(next(stream)) + "\n" for _ in range(num_actions)))

    def start(
        self, name: str, size: int, points: dict[int, str] | None = None, broken: Sequence[str] = (),
        configs: dict[int, Path] | None = None, odd: Sequence[str] = (), only: Sequence[int] | None = None,
    ) -> list[Child]:  # fmt: skip
        """Start a group. ``points``, ``configs``: by rank. ``broken``: all ranks; ``odd``: the last. ``only``: these
        alone are there."""
        where, found = place_of(size), list[Child]()
        for rank in range(size) if only is None else only:
            given = ["--config", (configs or {}).get(rank, self.config), "--file", self.data, "--json"]
            given += ["--checkpoint-dir", self.folder / name]
            builds = [*broken, *(odd if rank == size - 1 else ())]
            point = (points or {}).get(rank, "")
            found.append(self._factory.start([str(each) for each in given], builds, point, where(rank)))
        return found

    def outcome(self, name: str, children: list[Child]) -> Outcome:
        """The last checkpoint of a group that ends by itself, and its metrics."""
        for child in children:
            assert child.wait(120) == 0, child.log()[-3000:]
        report = json.loads(children[0].log().splitlines()[-1])
        return read_checkpoint(max((self.folder / name).glob("checkpoint-*"))), report["metrics"]

    def die(self, name: str, size: int, rank: int, point: str, broken: Sequence[str] = ()) -> None:
        """Run a group of which one is killed; all others end by themselves, with one line."""
        children = self.start(name, size, {rank: point}, broken)
        assert children[rank].wait(120) == -9, f"rank {rank}, {point}: {children[rank].log()[-3000:]}"
        for other, child in enumerate(children):
            if other != rank:
                assert child.wait(120) in (0, 1), child.log()[-3000:]
                assert "Traceback" not in child.log(), child.log()[-3000:]
                if child.status == 1:
                    assert f"headrace train: rank {other} of {size}: lost the other ranks" in child.log()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, factory: ProcessFactory) -> Alone:
    """What one process of a build learns; the same whenever it runs, so it runs once."""
    known: dict[Sequence[str], Outcome] = {}

    def outcome(builds: Sequence[str] = ()) -> Outcome:
        if builds not in known:
            run = RankRun(tmp_path_factory.mktemp("alone"), factory)
            known[builds] = run.outcome("1", run.start("1", 1, broken=builds))
        return known[builds]

    return outcome


@pytest.fixture
def run(tmp_path: Path, factory: ProcessFactory) -> RankRun:
    return RankRun(tmp_path, factory)


def assert_equal(ours: Outcome, theirs: Outcome) -> None:
    assert ours[0].step == theirs[0].step
    assert unequal(ours[0].arrays, theirs[0].arrays, but=RANKED_SO_FAR) == []
    assert ours[1] == theirs[1]


@pytest.mark.slow
@pytest.mark.parametrize("builds", [(), DIVIDED])
def test_any_number_of_ranks_learns_what_one_learns_to_the_bit(
    run: RankRun, alone: Alone, builds: tuple[str, ...]
) -> None:
    """With sampled negatives and the exact softmax, dropout, thinned contexts, eviction, features and domains."""
    for size in (2, 4):
        assert_equal(run.outcome(str(size), run.start(str(size), size, broken=builds)), alone(builds))


@pytest.mark.slow
@pytest.mark.parametrize("builds", [(), DIVIDED])
def test_rows_of_16_bits_are_rounded_alike_on_any_number_of_ranks(
    tmp_path: Path, factory: ProcessFactory, builds: tuple[str, ...]
) -> None:
    run = RankRun(tmp_path, factory, **HALF)
    alone = run.outcome("1", run.start("1", 1, broken=builds))
    for size in (2, 4):
        assert_equal(run.outcome(str(size), run.start(str(size), size, broken=builds)), alone)


@pytest.mark.slow
def test_owners_that_round_rows_by_their_places_are_caught(tmp_path: Path, factory: ProcessFactory) -> None:
    run, broken = RankRun(tmp_path, factory, **HALF), (*DIVIDED, "rounds_rows_by_their_places")
    alone = run.outcome("1", run.start("1", 1, broken=broken))
    with pytest.raises(AssertionError):
        assert_equal(run.outcome("2", run.start("2", 2, broken=broken)), alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        ("adds_up_one_after_the_other",),
        ("learns_its_own_part_alone", "trusts_all_ranks"),
        (*DIVIDED, "learns_before_it_is_asked"),
        (*DIVIDED, "counts_one_reader_of_a_row_alone"),
        (*DIVIDED, "keeps_quiet_about_evicted_rows"),
    ],
)
def test_ranks_that_do_not_learn_what_one_learns_are_caught(
    run: RankRun, alone: Alone, broken: tuple[str, ...]
) -> None:
    theirs = alone(broken)
    with pytest.raises(AssertionError):
        assert_equal(run.outcome("2", run.start("2", 2, broken=broken)), theirs)


def test_a_rank_that_comes_to_other_weights_is_found_at_once(run: RankRun) -> None:
    children = run.start("2", 2, broken=("learns_its_own_part_alone",))
    assert [child.wait(120) for child in children] == [1, 0], "rank 0 ends the others"
    assert "headrace train: step 1: the weights of rank 1 differ from those of rank 0" in children[0].log()


@pytest.mark.slow
def test_torchrun_restarts_all_ranks_after_one_was_killed(run: RankRun, alone: Alone) -> None:
    """The real torchrun, of which rank 1 and then, after its restart, rank 0 are killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    command += ["--monitor-interval", "0.1", "--master-port", str(free_port())]
    command += [str(REPOSITORY / "tests/trainer/rank_main.py"), "1:0:summed:9:kill 0:1:learned:9:kill"]
    command += ["--config", str(run.config), "--file", str(run.data), "--checkpoint-dir", str(run.folder / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with (run.folder / "torchrun.log").open("wb") as log:
        done = subprocess.run(
            command, env=environment, stdout=log, stderr=log, cwd=REPOSITORY, timeout=240, check=False
        )
    said = (run.folder / "torchrun.log").read_text()
    assert done.returncode == 0, said[-5000:]
    assert said.count("checkpoint loaded") == 2, said[-5000:]
    killed = read_checkpoint(max((run.folder / "killed").glob("checkpoint-*")))
    assert unequal(killed.arrays, alone()[0].arrays, but=()) == []


@pytest.mark.slow
def test_whichever_rank_is_killed_at_whatever_point_all_go_on_as_if_it_had_not_been(run: RankRun, alone: Alone) -> None:
    rng = random.Random(SEED)
    kills = [(0, f"{name}:{rng.randint(1, 4)}:kill") for name in rng.sample(FILE_POINTS, 4)]
    kills += [(0, f"{name}:{rng.randint(3, 9)}:kill") for name in ("given", "to_be_summed", "summed")]
    kills += [(1, f"{name}:{rng.randint(3, 9)}:kill") for name in RANK_POINTS if name != "given"]
    rng.shuffle(kills)
    for rank, point in kills:
        run.die("killed", 2, rank, point, DIVIDED)
    killed = run.outcome("killed", run.start("killed", 2, broken=DIVIDED))
    assert_equal(killed, alone(DIVIDED))


@pytest.mark.slow
def test_of_four_ranks_each_may_be_killed(run: RankRun, alone: Alone) -> None:
    for rank, point in enumerate(("learned:5", "taken:4", "to_be_summed:6", "swapped:7")):
        run.die("killed", 4, rank, f"{point}:kill", DIVIDED)
    killed = run.outcome("killed", run.start("killed", 4, broken=DIVIDED))
    assert_equal(killed, alone(DIVIDED))


def test_a_checkpoint_goes_on_with_any_other_number_of_ranks(run: RankRun, alone: Alone) -> None:
    for size, number in ((2, 2), (1, 1), (4, 1)):
        run.die("killed", size, 0, f"checkpointed:{number}:kill", DIVIDED)
    killed = run.outcome("killed", run.start("killed", 2, broken=DIVIDED))
    assert_equal(killed, alone(DIVIDED))


@pytest.mark.slow
def test_a_restart_that_gives_the_others_less_than_all_is_caught(run: RankRun, alone: Alone) -> None:
    broken = ("gives_the_others_rows_without_their_state", "trusts_all_ranks")
    run.die("killed", 2, 1, "summed:12:kill", broken)
    theirs = alone()
    with pytest.raises(AssertionError):
        assert_equal(run.outcome("killed", run.start("killed", 2, broken=broken)), theirs)


def test_ranks_that_do_not_fit_say_so_in_one_line(run: RankRun) -> None:
    other = write_config(run.folder / "other.toml", trainer={"shards": SHARDS, "dense_lr": 0.5})
    for odd, configs, line in (
        ((), {1: other}, "headrace train: trainer.dense_lr: rank 0 has 0.003, rank 1 has 0.5"),
        (("is_another_build",), {}, "headrace train: the build: rank 0 has "),
    ):
        children = run.start("2", 2, configs=configs, odd=odd)
        assert [child.wait(120) for child in children] == [1, 1]
        for child in children:
            assert child.log().splitlines()[-1].startswith(line), child.log()


def test_ranks_on_other_kinds_of_machines_are_told_apart() -> None:
    ours = {BUILD: "b", TORCH: "t", MACHINE: "x86_64", LEVEL: "portable", GPU: "NVIDIA A100"}
    assert _difference(1, ours, ours) == ""
    assert _difference(1, ours | {MACHINE: "aarch64"}, ours) == (
        "the kind of machine: rank 0 has 'x86_64', rank 1 has 'aarch64'; run all processes on x86-64, or all on arm64"
    )
    assert _difference(1, ours | {GPU: "none"}, ours).startswith(
        "the GPU: rank 0 has 'NVIDIA A100', rank 1 has 'none'; "
    )


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert own_gpu(3) == 2
    with pytest.raises(ConfigError, match=r"^trainer.device: expected a GPU for each .* got 2 for rank 3 of them; "):
        own_gpu(2)


def test_more_processes_than_shards_are_refused_in_one_line(run: RankRun) -> None:
    whole = write_config(run.folder / "whole.toml")
    children = run.start("2", 2, configs={0: whole, 1: whole})
    for child in children:
        assert child.wait(120) == WRONG_CONFIGURATION
        last = child.log().splitlines()[-1]
        assert last.startswith(
            "headrace train: trainer.shards: expected a multiple of the number of processes, 2, got 1"
        )


def test_a_rank_that_cannot_reach_the_others_says_so_in_one_line(run: RankRun) -> None:
    lonely = write_config(run.folder / "lonely.toml", trainer={"shards": SHARDS, "rank_timeout_s": 1.0})
    (child,) = run.start("2", 2, configs={1: lonely}, only=[1])
    assert child.wait(120) == 1
    assert "headrace train: rank 1 of 2: cannot reach the others by way of 127.0.0.1:" in child.log()
    assert "Traceback" not in child.log()


# On the stream


def start_ranks(
    made: Stage, points: dict[int, str] | None = None, name: str = "a", size: int = 2, broken: tuple[str, ...] = (),
    builds: tuple[str, ...] = (),
) -> list[Child]:  # fmt: skip
    """Start a group on a stage's topics, rank 0 last: it is the stage's newest child. ``builds``: of all ranks;
    ``broken``: rank 0's besides."""
    where, found = place_of(size), dict[int, Child]()
    for rank in reversed(range(size)):
        theirs, point = builds if rank else (*builds, *broken), (points or {}).get(rank, "")
        found[rank] = made.start(name, theirs, point, environment=where(rank))
    return [found[rank] for rank in range(size)]


def lose_a_rank(made: Stage, rank: int, point: str, builds: tuple[str, ...]) -> None:
    """Run a group of which one rank is killed while the stream goes on; the others are ended, as torchrun does."""
    made.feed(40)
    children = start_ranks(made, {rank: point}, builds=builds)
    made.feed_until(lambda: children[rank].status is not None, f"{point} on rank {rank}")
    assert children[rank].status == -9, children[rank].log()[-3000:]
    other = children[1 - rank]
    other.send(signal.SIGTERM)
    assert other.wait(120) in (0, 1), other.log()[-3000:]
    made.note_journal()


@pytest.mark.slow
def test_on_the_stream_every_rank_may_be_killed_and_all_is_learned_exactly_once(
    stage: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tables that are whole in some steps and divided in the others; one process without ranks checks the rest."""
    monkeypatch.setattr(trainer.learner.step, "MemoryPass", trainer.learner.step.MemoryPass)  # to be restored
    divides_small_catalogues()
    made = stage(trainer={"shards": 2, "whole_table_bytes": 0})
    kills = ((1, "taken:6"), (0, "published:2"), (1, "swapped:8"), (0, "half_of_the_chunks:2"), (0, "summed:5"))
    for rank, point in kills:
        lose_a_rank(made, rank, f"{point}:kill", DIVIDED)
    start_ranks(made, builds=DIVIDED)
    made.feed(20)
    recount = made.finish(is_divided=True)
    assert len({each.manifest.lineage for each in recount.versions}) == 1
    assert recount.stale == []


@pytest.mark.slow
def test_on_the_stream_several_ranks_forget_users_at_the_same_step(stage: Make) -> None:
    """One process without ranks, which follows the plan, comes to the same bits."""
    made = stage(trainer={"shards": 2})
    made.feed(40)
    gone = made.forget(2)
    lose_a_rank(made, 1, "taken:6:kill", ())
    gone += made.forget(2)
    start_ranks(made)
    made.feed(20)
    gone += made.forget(2)
    made.finish()
    assert len(gone) == 6 * NUM_PARTITIONS
    marks = [each for examples in made.sent.values() for each in examples if each.mark is Mark.USERS]
    assert len(marks) == 3 * NUM_PARTITIONS


@pytest.mark.parametrize("size", [1, 2])
def test_a_standby_of_any_number_of_ranks_takes_over_from_two(stage: Make, size: int) -> None:
    made = stage(trainer={"shards": 2})
    leading = start_ranks(made)
    made.feed_until(lambda: bool(made.recount().versions), "a version")
    waiting = start_ranks(made, name="b", size=size)
    waiting[0].wait_for("standby")
    made.feed(20)
    for child in leading:
        child.kill()
    made.feed(20)
    recount = made.finish("b")
    assert recount.last.epoch == 1
    assert [child.wait(120) for child in waiting[1:]] == [0] * (size - 1)


def test_a_step_that_leaves_nothing_finite_is_set_aside_by_all_ranks(stage: Make) -> None:
    made = stage(trainer={"shards": 2})
    made.feed(60)
    children = start_ranks(made, broken=("spoils_the_step_of_one_example",))
    made.feed(40)
    recount = made.finish()
    assert [len(each.manifest.set_aside) for each in recount.versions if each.manifest.set_aside] == [1]
    assert children[0].log().count("a step is set aside") == 1
    assert {each.manifest.epoch for each in recount.versions} == {0}, "one group all the time"
    assert children[1].wait(120) == 0


@pytest.mark.parametrize("builds", [(), DIVIDED])
def test_a_step_whose_gradients_fail_after_its_predictions_is_set_aside(
    stage: Make, monkeypatch: pytest.MonkeyPatch, builds: tuple[str, ...]
) -> None:
    """When rank 0 hears of it, it has counted the step already."""
    if builds:
        monkeypatch.setattr(trainer.learner.step, "MemoryPass", trainer.learner.step.MemoryPass)  # to be restored
        divides_small_catalogues()
    made = stage(trainer={"shards": 2, "whole_table_bytes": 0 if builds else 1 << 30})
    made.feed(60)
    children = start_ranks(made, builds=(*builds, "fails_after_it_has_predicted"))
    made.feed(40)
    recount = made.finish(is_divided=bool(builds))
    assert [step for each in recount.versions for step in each.manifest.set_aside] == [3]
    assert children[0].log().count("a step is set aside") == 1
    assert children[1].wait(120) == 0


def fail_and_go_back_slowly(made: Stage, builds: tuple[str, ...], broken: tuple[str, ...] = ()) -> list[Child]:
    """Start four ranks of which one fails in a step; going back takes longer than ranks wait for each other."""
    made.feed(140)
    children = start_ranks(made, size=4, builds=(*builds, "goes_back_slowly"), broken=broken)
    made.feed(40)
    return children


SLOW_RETURNS = [
    (("fails_before_it_has_predicted",), 3),
    (("fails_while_it_counts",), 3),
    ((*DIVIDED, "fails_before_it_has_the_answers"), 9),
]
"""Builds of which one step fails, and that step."""
FOUR = {"shards": 4, "rank_timeout_s": 5.0}


@pytest.mark.slow
@pytest.mark.parametrize(("builds", "step"), SLOW_RETURNS)
def test_going_back_may_take_longer_than_ranks_wait_for_each_other(
    stage: Make, monkeypatch: pytest.MonkeyPatch, builds: tuple[str, ...], step: int
) -> None:
    is_divided = "divides_small_catalogues" in builds
    if is_divided:
        monkeypatch.setattr(trainer.learner.step, "MemoryPass", trainer.learner.step.MemoryPass)  # to be restored
        divides_small_catalogues()
    made = stage(trainer={**FOUR, "whole_table_bytes": 0 if is_divided else 1 << 30})
    children = fail_and_go_back_slowly(made, builds)
    recount = made.finish(is_divided=is_divided)
    assert {number for each in recount.versions for number in each.manifest.set_aside} == {step}
    assert children[0].log().count("going back to the checkpoint") == 1
    assert [child.wait(60) for child in children[1:]] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("builds", [SLOW_RETURNS[0][0], SLOW_RETURNS[-1][0]])
def test_a_trainer_that_leaves_the_others_in_the_middle_is_caught(stage: Make, builds: tuple[str, ...]) -> None:
    made = stage(trainer={**FOUR, "whole_table_bytes": 0 if "divides_small_catalogues" in builds else 1 << 30})
    children = fail_and_go_back_slowly(made, builds, ("leaves_the_others_in_the_middle",))
    assert children[0].wait(60) == 1
    log = children[0].log()
    assert "lost the other ranks" in log or "differ from those of rank 0" in log, log[-3000:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_for_the_others_is_ended_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    where = place_of(2)(0)
    config = write_config(tmp_path / "headrace.toml", trainer={"shards": 2})
    command = [sys.executable, "-m", "trainer", "--config", str(config)]
    waiting = subprocess.Popen(command, env={**os.environ, **where}, cwd=REPOSITORY)
    try:
        store = KafkaConfig(bootstrap=f"127.0.0.1:{where['MASTER_PORT']}")
        wait_until(lambda: accepts_connections(store), 60, "rank 0 listens for the others")
        waiting.send_signal(number)
        assert waiting.wait(30) == -number
    finally:
        waiting.kill()
