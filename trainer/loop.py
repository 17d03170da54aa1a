"""The single pass: source → step → metrics, with each step journalled before it, checkpoints and versions after it.

At startup the trainer continues its line of training where it stands (`trainer.recovery`): it first repeats exactly the
steps recorded after the checkpoint, and only then decides on steps of its own. A step that leaves numbers that are not
finite is set aside: the trainer goes back to the checkpoint and repeats everything but that step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from model.config import ModelConfig
from trainer.checkpointing import Checkpointing
from trainer.config import TrainerConfig
from trainer.copies.pace import Pace
from trainer.copies.soundness import Unsound, failed, unsound_core, unsound_learner, unsound_scoring, unsound_step
from trainer.device import choose_device
from trainer.errors import FAILURES, UnsoundError
from trainer.frozen_rival import FrozenRival
from trainer.lag.progress import Progress
from trainer.learner.step import Learner, StepReport
from trainer.publication import Publication
from trainer.ranks.messages import Ranks
from trainer.recovery import Recovery, Resumed
from trainer.set_aside import SetAside, pass_over
from trainer.sources.feed import StepFeed
from trainer.sources.source import Position, Source
from trainer.versions.election import Claimant
from trainer.versions.publisher import Publisher
from wire.example import Lesson
from wire.weights import PlanStep

log = structlog.get_logger("trainer")


class Trainer:
    """One trainer process: `run`; or step by step, `start`, any number of `turn`, `finish` and `close`.

    ``make_source`` gets the positions to read on from. ``identity`` returns what the examples depend on; it is stored
    with the positions, and compared when they are resumed. ``take_over``: lead at once, even if another trainer leads.
    ``from_published``: without a checkpoint, start from the last published version instead of the first step.
    ``ranks``: other processes that compute a part of each step.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: TrainerConfig,
        make_source: Callable[[dict[int, Position]], Source],
        *,
        checkpoint_dir: Path | None,
        publisher: Publisher | None = None,
        stop: threading.Event | None = None,
        identity: Callable[[], dict[str, Any]] = dict,
        take_over: bool = False,
        from_published: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.model_config, self._ranks = config, model, ranks
        self.stop = stop or threading.Event()
        self.publisher = publisher
        self.publication = Publication(publisher) if publisher is not None else None
        self.checkpoints = Checkpointing(checkpoint_dir, config) if checkpoint_dir else None
        self.frozen = self._frozen_rival()
        self.learner = self._new_learner()
        self.pace = Pace()
        self.set_aside = SetAside()
        self.progress = Progress()
        self.claimant: Claimant | None = None
        self._make_source, self._read_identity, self._take_over = make_source, identity, take_over
        self._from_published = from_published
        self._identity: dict[str, Any] = {}
        self._feed: StepFeed | None = None
        self._last_report: StepReport | None = None
        self._metrics_due_s = 0.0
        self._metrics: dict[str, Any] = {}
        self._has_finished = False

    def _frozen_rival(self) -> FrozenRival | None:
        is_wanted = self.publisher is not None and self._ranks is None and self.config.frozen_every_s > 0
        return FrozenRival(self.config, self.checkpoints.folder) if is_wanted and self.checkpoints is not None else None

    def _new_learner(self) -> Learner:
        learner = Learner(self.model_config, self.config, choose_device(self.config), ranks=self._ranks)
        learner.scoring.evaluator.on_ranked = self.frozen.compare if self.frozen is not None else None
        return learner

    @property
    def feed(self) -> StepFeed:
        """The steps, once started."""
        assert self._feed is not None, "start() comes first"
        return self._feed

    # Start

    def start(self) -> None:
        """Lock the checkpoint folder, become the leader, recover, and open the source.

        Raises `wire.kafka.retry.StoppedError` if the process is asked to stop before that is done.
        """
        folder = self.checkpoints.folder if self.checkpoints is not None else None
        if folder is not None:
            folder.open()
        self._identity = self._read_identity()
        recovery = Recovery(folder, self._identity)
        resumed = recovery.from_disk(self.learner)
        if self.publisher is not None:
            self.claimant = Claimant.on(folder.path if folder is not None else None)
            recovery.with_published(
                resumed, self.learner, self.publisher, self.claimant, self.stop,
                take_over=self._take_over, on_standby=self._note_standby, from_published=self._from_published,
            )  # fmt: skip
            self.progress = Progress(
                time_ms=int(time.time() * 1000), epoch=self._epoch, claimant=self.claimant.name, is_recovering=True,
                positions=dict(resumed.positions),
            )  # fmt: skip
        if self.publication is not None:
            self.publication.resume(resumed, self.learner, self._identity)
        self._resume(resumed)
        if self.publisher is not None:
            self.publisher.start()
        self.progress = self._progress()
        log.info(
            "training", device=str(self.learner.device), step=self.learner.num_steps, epoch=self._epoch,
            num_ranks=self._ranks.size if self._ranks is not None else 1,
        )  # fmt: skip

    def _note_standby(self) -> None:
        self.progress = Progress(is_standby=True, claimant=self.claimant.name if self.claimant else "")

    def _resume(self, resumed: Resumed) -> None:
        """Continue from ``resumed``; the learner has been restored already."""
        learner, num_steps = self.learner, self.learner.num_steps
        self.set_aside.resume(resumed.plan.set_aside, resumed.num_set_aside)
        recorded = resumed.planned(learner)
        if recorded:
            log.info("repeating recorded steps", first_step=num_steps, num_steps=len(recorded))
        source = self._make_source(resumed.positions)
        self._feed = StepFeed(
            source, self.config, learner.max_context, recorded=recorded, first_step=num_steps,
            is_live=self.publisher is not None,
        )  # fmt: skip
        source.restore(learner.histories)
        if removed := learner.histories.removed:  # published weights do not say so
            learner.remove_items(removed)
        if (checkpoints := self.checkpoints) is not None:
            checkpoints.resume(resumed, self._identity)
            if resumed.is_fresh and not self.stop.is_set():  # which leaves half of the users
                checkpoints.cut(learner, resumed.positions, recorded, self.set_aside, self.publication)
                checkpoints.saver.wait()
            checkpoints.journal.start(num_steps, recorded, self.set_aside.steps)
            checkpoints.wait_from(num_steps)

    # The pass

    def run(self) -> None:
        """Train until the source is exhausted or ``stop`` is set; then checkpoint, publish the rest, and close."""
        try:
            self.start()
            while not self.stop.is_set() and self.turn():
                pass
            self.finish()
        finally:
            self.close()

    def turn(self) -> bool:
        """One round: fetch, train a step if there is one, then do what is due. False once the source is exhausted."""
        ready = self.feed.next()
        if ready is not None and not self._train(*ready):
            return True
        try:
            self._keep_up(trained=ready is not None)
        except FAILURES:
            if (problem := unsound_scoring(self.learner)) is None:  # it has nothing to do with a step
                raise
            self._undo(problem, None)
        return not (ready is None and self.feed.is_exhausted)

    def _train(self, step: PlanStep, examples: list[Lesson]) -> bool:
        """Learn a step, or skip it if it is set aside; False if it had to be undone."""
        number = self.learner.num_steps
        if self.checkpoints is not None and self.feed.is_new(number):
            self.checkpoints.journal.append(number, step)
        if number in self.set_aside:
            self.set_aside.num_interactions += pass_over(self.learner, examples)
        elif (problem := self._learn(examples)) is not None:
            # An earlier step may be to blame, unless each was checked: then go back, and check each.
            self._undo(problem, number if self.set_aside.is_checked(number) else None)
            return False
        self.feed.trained(step)
        if self.publication is not None:
            self.publication.learned(number, step)
        return True

    def _learn(self, examples: list[Lesson]) -> Unsound | None:
        try:
            self._last_report = self.learner.step(examples)
            self.pace.stepped(self._last_report.seconds)
            is_checked = self.set_aside.is_checked(self.learner.num_steps - 1)
            return unsound_step(self._last_report) or (unsound_learner(self.learner) if is_checked else None)
        except FAILURES as failure:
            return failed("a step failed", failure)

    # Numbers that are not finite

    def _is_sound(self, *, rows: bool) -> bool:
        """Whether the learner may be stored and published; otherwise go back to find the step that spoilt it.

        ``rows``: check every row too; those of a checkpoint or a version are checked by the thread that writes it.
        False right after a step that was set aside, until another one is learned: if none can be learned, the steps are
        not to blame (`SetAside.add`).
        """
        if self.learner.num_steps - 1 in self.set_aside:
            return False
        problem = unsound_learner(self.learner) if rows else unsound_core(self.learner)
        if problem is not None:
            self._undo(problem, None)
        return problem is None

    def _undo(self, problem: Unsound, step: int | None) -> None:
        """Set ``step`` aside (None: find it) and go back to the checkpoint, to repeat everything but that step."""
        if self._ranks is not None:
            self._ranks.settle()
        if (checkpoints := self.checkpoints) is None:
            raise UnsoundError(
                f"step {self.learner.num_steps}: not finite: {problem.what}; without a checkpoint_dir no step can be "
                "undone. Lower trainer.dense_lr and trainer.table_lr, or look for extreme values in the data"
            )
        until = self.learner.num_steps + 1
        if step is not None:
            self.set_aside.add(step, problem, checkpoints.journal, checkpoints.folder.present_steps()[-1])
        else:
            log.error("not finite: going back to the checkpoint to find the step to blame", what=problem.what)
        self.feed.close()
        checkpoints.saver.abandon()
        self.learner = self._new_learner()
        resumed = Recovery(checkpoints.folder, self._identity).from_disk(self.learner)
        if resumed.is_fresh:  # there is always one, written at startup
            raise UnsoundError(f"checkpoint_dir {checkpoints.folder.path}: its checkpoints are gone; put them back")
        self._resume(resumed)
        self.set_aside.check_until(until)
        if self.publication is not None:
            self.publication.rewind(self.set_aside.steps)

    # What is due

    def _keep_up(self, *, trained: bool) -> None:
        self._save(trained=trained)
        self._publish()
        self.pace.turned()
        if time.monotonic() >= self._metrics_due_s:
            self._metrics = self._measure()
            self._metrics_due_s = time.monotonic() + self.config.lag_every_s
        self.progress = self._progress()

    def _measure(self) -> dict[str, Any]:
        metrics = self.learner.metrics.summary()
        if self.frozen is not None:
            if not self.feed.is_repeating:
                self.frozen.renew(self.learner)
            metrics["frozen"] = self.frozen.report()
        return metrics

    def _save(self, *, trained: bool) -> None:
        """Begin the checkpoint that is due, continue it, or complete it."""
        if (checkpoints := self.checkpoints) is None:
            return
        saver = checkpoints.saver
        if (problem := saver.check()) is not None:
            self._undo(problem, None)
            return
        if trained:
            checkpoints.begin_if_due(self.learner)
        if saver.is_copying and self.pace.copy(saver.advance, self._num_copies) and self._is_sound(rows=False):
            self._cut_checkpoint(checkpoints)

    def _cut_checkpoint(self, checkpoints: Checkpointing) -> None:
        checkpoints.cut(self.learner, self.feed.positions, self.feed.recorded, self.set_aside, self.publication)

    def _publish(self) -> None:
        """Begin the version that is due, continue it, or complete it."""
        if (publication := self.publication) is None:
            return
        if (problem := publication.note_acknowledged()) is not None:
            self._undo(problem, None)
            return
        if self.feed.is_repeating or not publication.is_due(self.learner):
            return
        is_ready = self.pace.copy(lambda budget: publication.collect(self.learner, budget), self._num_copies)
        if is_ready and self._is_sound(rows=False):
            publication.offer(self.learner, self.feed.positions)

    @property
    def _num_copies(self) -> int:
        """How many copies share the time for copying."""
        is_collecting = self.publication is not None and self.publication.is_collecting
        return 2 if is_collecting and self.checkpoints is not None and self.checkpoints.saver.is_copying else 1

    def finish(self) -> None:
        """Checkpoint and publish the rest."""
        is_sound = self._is_sound(rows=True)
        while self.feed.recorded and not is_sound and not self.stop.is_set():  # the source has ended: repair first
            self.turn()
            is_sound = not self.feed.is_repeating and self._is_sound(rows=True)
        if is_sound and (checkpoints := self.checkpoints) is not None:
            checkpoints.saver.wait()
            if self.learner.num_steps > checkpoints.last_step:
                self._cut_checkpoint(checkpoints)
                checkpoints.saver.wait()
                checkpoints.prune()
        if is_sound and self.publication is not None and not self.feed.is_repeating:
            self.publication.finish(self.learner, self.feed.positions)
        self._metrics = self._measure()
        self.progress = self._progress()
        self._has_finished = True

    def close(self) -> None:
        """Close the connections, the source and the files."""
        if self.publisher is not None:
            self.publisher.close(release=self._has_finished)
        for part in (self._feed, self.frozen, self.checkpoints):
            if part is not None:
                part.close()

    @property
    def _epoch(self) -> int:
        return self.publisher.epoch if self.publisher is not None else -1

    def _progress(self) -> Progress:
        report, learner, publisher = self._last_report, self.learner, self.publisher
        last = publisher.last if publisher is not None else None
        return Progress(
            time_ms=int(time.time() * 1000),
            num_steps=learner.num_steps,
            num_interactions=learner.num_interactions,
            num_set_aside=self.set_aside.num_interactions,
            num_lost=self.feed.num_lost,
            is_recovering=self.feed.is_repeating,
            claimant=self.claimant.name if self.claimant is not None else "",
            positions=dict(self.feed.positions),
            oldest_waiting_ms=self.feed.oldest_waiting_ms(),
            newest_record_ms=learner.newest_record_ms,
            newest_event_ms=learner.newest_event_ms,
            unpublished_since_ms=self.publication.since_ms if self.publication is not None else 0,
            published=last.manifest if last else None,
            published_ms=last.acknowledged_ms if last else 0,
            epoch=self._epoch,
            retrieval_loss=report.retrieval_loss if report else None,
            ranking_loss=report.ranking_loss if report else None,
            num_items=learner.items.num_live,
            num_evicted=learner.items.num_dropped,
            checkpointed_ms=self.checkpoints.saver.written_ms if self.checkpoints is not None else 0,
            metrics=self._metrics,
        )
