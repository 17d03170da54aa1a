"""Deliberately broken trainers, by name. The tests in this folder must catch each one."""

from __future__ import annotations

import itertools
import os
import resource
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import kernels
import model.row_store
import trainer.checkpoint.folder
import trainer.checkpoint.plan
import trainer.checkpoint.saver
import trainer.checkpoint.snapshot
import trainer.checkpointing
import trainer.copies.pace
import trainer.copies.sweep
import trainer.examples.histories
import trainer.examples.waiting
import trainer.learner.step
import trainer.loop
import trainer.metrics.evaluator
import trainer.process
import trainer.publication
import trainer.ranks.division
import trainer.ranks.messages
import trainer.ranks.replica
import trainer.ranks.sharding
import trainer.ranks.shards
import trainer.recovery
import trainer.sources.kafka
import trainer.sources.positions
import trainer.sources.scheduler
import trainer.versions.collection
import trainer.versions.election
import trainer.versions.rounding
import trainer.versions.writer
import wire.example_log
from wire.example import Mark

SLOWLY_S = 8.0
"""How long something slow takes (`goes_back_slowly`)."""


def ignores_the_journal() -> None:
    """Steps that were decided before a kill are decided again."""
    trainer.recovery.read_journal = lambda folder, from_step: trainer.checkpoint.plan.Plan(from_step)


def ignores_the_plan() -> None:
    """Steps that were published before a kill are decided again."""
    trainer.checkpoint.plan.Plan.after = lambda self, step: []  # type: ignore[method-assign]


def checkpoints_without_positions() -> None:
    """Checkpoints lack the positions."""
    cut = trainer.checkpointing.Checkpointing.cut

    def without(self: Any, learner: Any, positions: Any, *rest: Any) -> None:
        del positions
        cut(self, learner, {}, *rest)

    trainer.checkpointing.Checkpointing.cut = without  # type: ignore[method-assign]


def forgets_what_it_has_yet_to_repeat() -> None:
    """The plan begins after the last published step, though the checkpoint is older."""
    from_disk = trainer.recovery.Recovery.from_disk

    def late(self: Any, learner: Any) -> Any:
        resumed = from_disk(self, learner)
        kept = trainer.checkpoint.plan.Plan(resumed.unpublished_first)
        kept.merge(resumed.plan.first_step, resumed.plan.steps)
        resumed.plan = kept
        return resumed

    trainer.recovery.Recovery.from_disk = late  # type: ignore[method-assign]


def forgets_histories() -> None:
    """A starting trainer does not know what users did before its checkpoint."""
    trainer.sources.kafka.KafkaSource.restore = lambda self, histories: None  # type: ignore[method-assign]


def folds_what_arrives() -> None:
    """Examples are folded into histories when they arrive, not when they are learned."""
    arrived = trainer.sources.scheduler.Scheduler.add

    def add(self: Any, examples: Any) -> None:
        for example in examples:
            self.histories.fold(example)
        arrived(self, examples)

    take = trainer.loop.Trainer.turn

    def turn(self: Any) -> bool:
        self.feed._scheduler.histories = self.learner.histories
        return take(self)

    trainer.loop.Trainer.turn = turn  # type: ignore[method-assign]
    trainer.sources.scheduler.Scheduler.add = add  # type: ignore[method-assign]


def forgets_dirty_rows() -> None:
    """Changes are forgotten before the delta that carries them is acknowledged."""
    collect = trainer.publication.Publication.collect

    def forgetful(self: Any, learner: Any, budget_bytes: int) -> bool:
        if not self._publisher.wants_base and not self.is_collecting:
            for table in learner.tables.values():
                table.mark_published()
        return collect(self, learner, budget_bytes)

    trainer.publication.Publication.collect = forgetful  # type: ignore[method-assign]


def trains_what_is_stale() -> None:
    """Repeated records, and those of a worker that has lost its partition, are trained too."""

    def feed(self: Any, example: Any) -> wire.example_log.Verdict:
        return wire.example_log.Verdict.FENCE if example.is_fence else wire.example_log.Verdict.ACCEPT

    wire.example_log.ExampleLog.feed = feed  # type: ignore[method-assign]


def claims_nothing() -> None:
    """The trainer does not check whether another one has taken over."""
    trainer.versions.writer.WeightsWriter.check_fence = lambda self: None  # type: ignore[method-assign]


def fences_a_live_leader() -> None:
    """A second trainer claims an epoch even if another one leads."""
    trainer.versions.election.Election._wait_for_turn = lambda self, claims: None  # type: ignore[method-assign]


def spoils_the_step_of_one_example() -> None:
    """A kernel fails on one example: the step with it leaves a weight that is NaN."""
    step = trainer.learner.step.Learner.step

    def spoiling(self: Any, examples: Any) -> Any:
        report = step(self, examples)
        if any((each.partition, each.number) == (1, 5) for each in examples):
            next(iter(self.model.parameters())).data.view(-1)[0] = float("nan")
        return report

    trainer.learner.step.Learner.step = spoiling  # type: ignore[method-assign]


def fails_in_scoring_the_step_of_one_example() -> None:
    """As on a GPU, where a step is scored until somebody asks: then one fails."""
    step = trainer.learner.step.Learner.step

    def fail() -> None:
        raise IndexError("broken")

    def failing(self: Any, examples: Any) -> Any:
        report = step(self, examples)
        if any((each.partition, each.number) == (1, 5) for each in examples):
            self.scoring._begun = self.rates._begun = fail
        return report

    trainer.learner.step.Learner.step = failing  # type: ignore[method-assign]


def takes_anything_for_finite() -> None:
    """No number is checked."""
    trainer.loop.unsound_learner = trainer.loop.unsound_core = lambda learner, **_: None
    trainer.checkpoint.saver.unsound_piece = trainer.versions.collection.unsound_piece = lambda piece: None
    trainer.loop.unsound_step = lambda report: None


def copies_little_at_a_time() -> None:
    """Not broken: a checkpoint and a version take many steps, as those of a large model do."""
    trainer.copies.pace.LEAST_BYTES = 6_000
    trainer.copies.pace.SHARE = 0.0


def may_have_a_gibibyte_more() -> None:
    """Not broken: under a limit on address space that leaves a GiB beyond the libraries."""
    used = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))


def rounds_bases_as_if_they_were_deltas() -> None:
    """A base has the differences from weights that a new reader does not hold."""
    resize = trainer.versions.rounding.Rounding._resize
    trainer.versions.rounding.Rounding._resize = (  # type: ignore[method-assign]
        lambda self, capacity, width, *, keep: resize(self, capacity, width, keep=True)
    )


def loses_what_waits() -> None:
    """A starting trainer has forgotten which interactions wait for their feedback."""
    trainer.examples.waiting.Waiting.restore = lambda self, example, history: None  # type: ignore[method-assign]


def copies_once() -> None:
    """Rows that change behind the copying are not copied again."""
    copies_little_at_a_time()

    def forget(self: Any, budget: int, dirty: Any) -> None:
        for region, rows_U in dirty:
            region.dirty[rows_U] = 0

    trainer.copies.sweep.Sweep._take_changed = forget  # type: ignore[method-assign]


def knows_no_topic_ids() -> None:
    """As on a broker without topic ids."""
    trainer.sources.positions.topic_id = lambda kafka, topic: ""


def trusts_any_topic() -> None:
    """Positions are resumed in any topic of the same name."""
    knows_no_topic_ids()
    trainer.process.check_ends = lambda *_: None  # type: ignore[attr-defined]


def passes_over_gaps() -> None:
    """Missing numbers are accepted silently."""
    meet = trainer.sources.kafka.KafkaSource._meet_gap

    def silent(self: Any, partition: int, offset: int, example: Any) -> None:
        self._on_gap = "skip"
        meet(self, partition, offset, example)

    trainer.sources.kafka.KafkaSource._meet_gap = silent  # type: ignore[method-assign]


def adds_up_one_after_the_other() -> None:
    """Vectors are not added up as a tree, so the order of sums depends on who has which shards."""

    def add(self: Any, flat: Any) -> None:
        before = self._branches[0][1] if self._branches else None
        self._branches = [(0, before if flat is None else flat if before is None else before.add_(flat))]

    trainer.ranks.shards.TreeSum.add = add  # type: ignore[method-assign]


def learns_its_own_part_alone() -> None:
    """Ranks do not exchange their gradients."""

    def start(self: Any, flat: Any, givers: Any) -> None:
        self._sum = lambda: flat

    trainer.ranks.messages.Ranks.start_sum = start  # type: ignore[method-assign]


def trusts_all_ranks() -> None:
    """Nobody compares the ranks' weights."""
    trainer.ranks.sharding.Sharding._check = lambda self, step, found, ranks: None  # type: ignore[method-assign]


def gives_the_others_rows_without_their_state() -> None:
    """After a restart, the other ranks learn rows as if they were new."""
    of = trainer.ranks.replica.rows_of
    trainer.ranks.sharding.rows_of = lambda table, rows_U: replace(of(table, rows_U), state_U=None)  # type: ignore[attr-defined]


def is_another_build() -> None:
    """One rank has been upgraded, the others have not."""
    import trainer.ranks.agreement

    trainer.ranks.agreement.build_digest = lambda root=None: "another"


def divides_small_catalogues() -> None:
    """Not broken: the tables are divided among ranks, and choices learned from a sample, as in a large catalogue."""
    trainer.learner.step.MemoryPass = partial(trainer.learner.step.MemoryPass, exact_rows=20, rows_per_share=8)  # type: ignore[misc, assignment]
    trainer.ranks.division.CHECKED_ROWS = 5


def learns_before_it_is_asked() -> None:
    """Owners of rows apply a step's gradients before the memory has asked for the logits that it mixes with."""
    compute = trainer.ranks.sharding.Sharding._compute_divided

    def eager(self: Any, *given: Any) -> Any:
        outputs = compute(self, *given)
        leaves = self._sum()
        self._sum = lambda: leaves
        return outputs

    trainer.ranks.sharding.Sharding._compute_divided = eager  # type: ignore[method-assign]


def fails_after_it_has_predicted() -> None:
    """In one step, the last rank's pass fails when rank 0 has its predictions already."""
    passes = trainer.ranks.replica.ShardRun._passes

    def failing(self: Any, tell: Any) -> Any:
        total = passes(self, tell)
        if self._step.step == 3 and os.environ["RANK"] == "1":
            raise ArithmeticError("broken")
        return total

    trainer.ranks.replica.ShardRun._passes = failing  # type: ignore[method-assign]


def fails_before_it_has_predicted() -> None:
    """In one step, the last rank's pass fails at once."""
    passes = trainer.ranks.replica.ShardRun._passes

    def failing(self: Any, tell: Any) -> Any:
        if self._step.step == 3 and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            raise ArithmeticError("broken")
        return passes(self, tell)

    trainer.ranks.replica.ShardRun._passes = failing  # type: ignore[method-assign]


def fails_while_it_counts() -> None:
    """In one step, rank 0 fails while the others compute gradients, or wait for it."""
    count = trainer.metrics.evaluator.Evaluator.count

    def failing(self: Any, asked: Any, *rest: Any) -> None:
        if asked.step == 3:
            raise ValueError("broken")
        count(self, asked, *rest)

    trainer.metrics.evaluator.Evaluator.count = failing  # type: ignore[method-assign]


def fails_before_it_has_the_answers() -> None:
    """In one step, rank 0 fails while the others, which divide the rows, predict."""
    compute = trainer.ranks.sharding.Sharding._compute_divided

    def fail() -> None:
        raise IndexError("broken")

    def failing(self: Any, ranks: Any, step: Any, *rest: Any) -> Any:
        if step.step == 9:
            self.meanwhile = fail
        return compute(self, ranks, step, *rest)

    trainer.ranks.sharding.Sharding._compute_divided = failing  # type: ignore[method-assign]


def goes_back_slowly() -> None:
    """Not broken: reading a checkpoint takes longer than ranks wait for each other, as that of a large model does."""
    load = trainer.checkpoint.folder.CheckpointFolder.load

    def slow(self: Any) -> Any:
        found = load(self)
        if found is not None:
            time.sleep(SLOWLY_S)
        return found

    trainer.checkpoint.folder.CheckpointFolder.load = slow  # type: ignore[method-assign]


def leaves_the_others_in_the_middle() -> None:
    """A trainer goes back while the other ranks are in the middle of the step that has failed."""
    trainer.ranks.messages.Ranks.settle = lambda self: None  # type: ignore[method-assign]


def rounds_rows_by_their_places() -> None:
    """How a row of 16 bits is rounded depends on where its owner has it."""
    store = model.row_store.RowStore

    def dithered(self: Any, step: int) -> Any:
        return kernels.Dither.of((1, step))

    store._dither = dithered  # type: ignore[method-assign]


def rounds_rows_by_the_number_of_calls() -> None:
    """How a row of 16 bits is rounded depends on how often this process has rounded."""
    store, calls = model.row_store.RowStore, itertools.count()

    def dithered(self: Any, step: int) -> Any:
        return kernels.Dither.of((1, next(calls)))

    store._dither = dithered  # type: ignore[method-assign]


def counts_one_reader_of_a_row_alone() -> None:
    """Of what the ranks return for a row, its owner learns the first part alone."""
    trainer.ranks.division.added = lambda parts, givers: parts[givers[0]]


def keeps_users_of_long_ago() -> None:
    """A mark of several users says nothing to it."""
    apply_mark = trainer.examples.histories.TrainedHistories.apply_mark

    def deaf(self: Any, mark: Any) -> None:
        if mark.mark is not Mark.USERS:
            apply_mark(self, mark)

    trainer.examples.histories.TrainedHistories.apply_mark = deaf  # type: ignore[method-assign]


def keeps_quiet_about_evicted_rows() -> None:
    """Owners are asked for rows before they hear which ones belong to no key any more."""
    trainer.ranks.sharding.Sharding._tell_renewed = lambda self: None  # type: ignore[method-assign]
