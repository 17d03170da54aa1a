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

import msgspec
import structlog

from model.config import ModelConfig
from trainer.checkpoint import Checkpoint, CheckpointFolder
from trainer.config import TrainerConfig
from trainer.device import choose_device
from trainer.election import Claimant
from trainer.errors import UnsoundError
from trainer.journal import Journal
from trainer.pace import Pace
from trainer.progress import Progress
from trainer.publication import Publication
from trainer.publisher import Publisher
from trainer.ranks import Ranks
from trainer.recovery import Recovery, Resumed
from trainer.saver import Saver
from trainer.scheduler import Scheduler
from trainer.snapshot import small_arrays
from trainer.soundness import Unsound, pass_over, unsound_core, unsound_learner, unsound_step
from trainer.source import Position, Source
from trainer.step import Learner, StepReport
from wire.example import Example
from wire.weights import PlanStep

log = structlog.get_logger("trainer")
MAX_SET_ASIDE = 3
"""If so many steps in a row leave numbers that are not finite, the examples are not to blame: the trainer stops."""


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
        self.learner = self._new_learner()
        self.stop = stop or threading.Event()
        self.publisher = publisher
        self.publication = Publication(publisher) if publisher is not None else None
        self.folder = CheckpointFolder(checkpoint_dir, _log_damage) if checkpoint_dir else None
        self.saver = Saver(self.folder) if self.folder is not None else None
        self.pace = Pace()
        self.journal = Journal(checkpoint_dir, fsync=config.journal_fsync) if checkpoint_dir else None
        self.source: Source | None = None
        self.scheduler = self._new_scheduler()
        self.progress = Progress()
        self.claimant: Claimant | None = None
        self._make_source, self._read_identity, self._take_over = make_source, identity, take_over
        self._from_published = from_published
        self._identity: dict[str, Any] = {}
        self._lineage = self._parent = ""
        self._planned: list[PlanStep] = []
        self._recorded_until = 0
        self._set_aside: set[int] = set()
        self._num_set_aside = 0
        self._sound_until = 0
        """The learner is checked after each step before this one, to find the step that spoilt it."""
        self._last_report: StepReport | None = None
        self._checkpoint_at_s = self._metrics_at_s = 0.0
        self._checkpoint_step = 0
        self._metrics: dict[str, Any] = {}
        self._has_finished = False

    def _new_learner(self) -> Learner:
        return Learner(self.model_config, self.config, choose_device(self.config), ranks=self._ranks)

    def _new_scheduler(self) -> Scheduler:
        config = self.config
        return Scheduler(self.learner.max_context, config.max_step_tokens, config.max_step_targets)

    # Start

    def start(self) -> None:
        """Lock the checkpoint folder, become the leader, recover, and open the source.

        Raises `wire.kafka.retry.StoppedError` if the process is asked to stop before that is done.
        """
        if self.folder is not None:
            self.folder.open()
        self._identity = self._read_identity()
        recovery = Recovery(self.folder, self._identity)
        resumed = recovery.from_disk(self.learner)
        if self.publisher is not None:
            self.claimant = Claimant.on(self.folder.path if self.folder is not None else None)
            recovery.with_published(
                resumed, self.learner, self.publisher, self.claimant, self.stop,
                take_over=self._take_over, on_standby=self._note_standby, from_published=self._from_published,
            )  # fmt: skip
            self.progress = Progress(epoch=self._epoch, claimant=self.claimant.name, is_recovering=True)
        if self.publication is not None:
            self.publication.resume(resumed, self.learner, self._identity)
        self._resume(resumed)
        if self.publisher is not None:
            self.publisher.start()
        self.progress = self._progress()
        ranks = self._ranks.size if self._ranks is not None else 1
        log.info("training", device=str(self.learner.device), step=self.learner.num_steps, epoch=self._epoch, ranks=ranks)

    def _note_standby(self) -> None:
        self.progress = Progress(is_standby=True, claimant=self.claimant.name if self.claimant else "")

    def _resume(self, resumed: Resumed) -> None:
        """Go on from ``resumed``; the learner is there already."""
        num_steps = self.learner.num_steps
        self._lineage, self._parent = resumed.lineage, resumed.parent
        self._set_aside = resumed.plan.set_aside
        self._num_set_aside = resumed.num_set_aside
        self._planned = resumed.planned(self.learner)
        self._recorded_until = num_steps + len(self._planned)
        if self._planned:
            log.info("repeating recorded steps", first_step=num_steps, num_steps=len(self._planned))
        if self.saver is not None and resumed.is_fresh:
            self._cut_checkpoint(self.saver, resumed.positions)
            self.saver.wait()
        if self.journal is not None:
            self.journal.start(num_steps, self._planned, self._set_aside)
        self.scheduler = self._new_scheduler()
        self.source = self._make_source(resumed.positions)
        self.source.restore(self.learner.histories)
        if removed := self.learner.histories.removed:  # published weights do not say so
            self.learner.remove_items(removed)
        self._checkpoint_at_s, self._checkpoint_step = self._in(self.config.checkpoint_every_s), num_steps

    @staticmethod
    def _in(seconds: float) -> float:
        return time.monotonic() + seconds

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
        ready = self._next_step()
        if ready is not None and not self._train(*ready):
            return True
        self._keep_up(trained=ready is not None)
        return not (ready is None and self._open_source.exhausted and self.scheduler.num_waiting == 0)

    @property
    def _open_source(self) -> Source:
        assert self.source is not None, "start() comes first"
        return self.source

    def _next_step(self) -> tuple[PlanStep, list[Example]] | None:
        if self._planned:
            return self._repeat()
        scheduler, source = self.scheduler, self._open_source
        deadline_s = self._in(self.config.step_linger_s)
        while scheduler.num_targets < self.config.max_step_targets and not source.exhausted:
            arrived = source.poll(0.2 if not scheduler.num_waiting else max(0.0, deadline_s - time.monotonic()))
            if arrived and not scheduler.num_waiting:
                deadline_s = self._in(self.config.step_linger_s)
            scheduler.add(arrived)
            if not scheduler.num_waiting or (time.monotonic() >= deadline_s and self.publisher is not None):
                break
        return scheduler.next_batch()

    def _repeat(self) -> tuple[PlanStep, list[Example]] | None:
        examples = self.scheduler.replay_batch(self._planned[0])
        if examples is None:
            self.scheduler.add(self._open_source.poll(0.2))
            examples = self.scheduler.replay_batch(self._planned[0])
        if examples is None and self._open_source.exhausted:
            log.error("recorded steps are left, but the source has ended", num_steps=len(self._planned))
            self._planned = []
        return None if examples is None else (self._planned.pop(0), examples)

    def _train(self, step: PlanStep, examples: list[Example]) -> bool:
        """Learn a step, or skip it if it is set aside; False if it had to be undone."""
        number = self.learner.num_steps
        if self.journal is not None and number >= self._recorded_until:
            self.journal.append(number, step)
        if number in self._set_aside:
            pass_over(self.learner, examples)
            self._num_set_aside += sum(example.num_new for example in examples)
        elif (problem := self._learn(examples)) is not None:
            # An earlier step may be to blame, unless each was checked: then go back, and check each.
            self._undo(problem, number if number < self._sound_until else None)
            return False
        self._open_source.trained(step)
        if self.publication is not None:
            self.publication.learned(number, step)
        return True

    def _learn(self, examples: list[Example]) -> Unsound | None:
        try:
            self._last_report = self.learner.step(examples)
            self.pace.stepped(self._last_report.seconds)
        except (ArithmeticError, ValueError, IndexError) as error:
            log.exception("a step failed")
            return Unsound(f"{type(error).__name__} ({error})")
        if (problem := unsound_step(self._last_report)) is not None:
            return problem
        return unsound_learner(self.learner) if self.learner.num_steps <= self._sound_until else None

    # Numbers that are not finite

    def _is_sound(self, *, rows: bool) -> bool:
        """Whether the learner may be stored and published; otherwise go back to find the step that spoilt it.

        ``rows``: look at every row, too; those of a checkpoint or a version are checked by the thread that writes it.
        False right after a step that was set aside, until another one is learned: if none can be, it is not the steps'
        fault (`_give_up_if_hopeless`).
        """
        if self.learner.num_steps - 1 in self._set_aside:
            return False
        problem = unsound_learner(self.learner) if rows else unsound_core(self.learner)
        if problem is not None:
            self._undo(problem, None)
        return problem is None

    def _undo(self, problem: Unsound, step: int | None) -> None:
        """Set ``step`` aside (None: find it) and go back to the checkpoint, to repeat everything but that step."""
        if self.folder is None or self.journal is None:
            raise UnsoundError(
                f"step {self.learner.num_steps}: not finite: {problem.what}; without a checkpoint_dir no step can be "
                "undone. Lower trainer.dense_lr and trainer.table_lr, or look for extreme values in the data"
            )
        until = self.learner.num_steps + 1
        if step is not None:
            self._set_aside.add(step)
            self._give_up_if_hopeless(step, problem)
            self.journal.append(step, None)
            log.error("a step is set aside: it left numbers that are not finite", step=step, what=problem.what)
        else:
            log.error("not finite: going back to the checkpoint to find the step to blame", what=problem.what)
        self._open_source.close()
        assert self.saver is not None
        self.saver.abandon()
        self.learner = self._new_learner()
        resumed = Recovery(self.folder, self._identity).from_disk(self.learner)
        if resumed.is_fresh:  # there is always one, written at startup
            raise UnsoundError(f"checkpoint_dir {self.folder.path}: its checkpoints are gone; put them back")
        self._resume(resumed)
        self._sound_until = max(self._sound_until, until)
        if self.publication is not None:
            self.publication.rewind(self._set_aside)

    def _give_up_if_hopeless(self, step: int, problem: Unsound) -> None:
        """Raise if the steps before were set aside too; the journal keeps them, for a trainer that can learn them."""
        run = {step - back for back in range(MAX_SET_ASIDE)}
        if not run <= self._set_aside:
            return
        assert self.journal is not None
        assert self.folder is not None
        first = self.folder.steps()[-1]
        recorded = self.journal.read(first)
        self.journal.start(first, recorded.steps, recorded.set_aside - run)
        raise UnsoundError(
            f"steps {min(run)} to {max(run)}: each left numbers that are not finite ({problem.what}). Their results "
            f"are discarded, and the checkpoint at step {first} is good. Lower trainer.dense_lr and trainer.table_lr "
            "and name an empty trainer.checkpoint_dir; or look for extreme values in the data"
        )

    # What is due

    def _keep_up(self, *, trained: bool) -> None:
        self._save(trained=trained)
        self._publish()
        if time.monotonic() >= self._metrics_at_s:
            self._metrics, self._metrics_at_s = self.learner.metrics.summary(), self._in(self.config.lag_every_s)
        self.progress = self._progress()

    def _is_checkpoint_due(self) -> bool:
        num_new = self.learner.num_steps - self._checkpoint_step
        by_time = time.monotonic() >= self._checkpoint_at_s and num_new > 0
        return by_time or self._is_checkpoint_due_by_steps()

    def _is_checkpoint_due_by_steps(self) -> bool:
        return 0 < self.config.checkpoint_every_steps <= self.learner.num_steps - self._checkpoint_step

    def _save(self, *, trained: bool) -> None:
        """Begin the checkpoint that is due, go on with it, or end it."""
        saver = self.saver
        if saver is None:
            return
        if (problem := saver.check()) is not None:
            self._undo(problem, None)
            return
        if trained and self._is_checkpoint_due_by_steps() and not saver.is_copying:
            saver.wait()  # who counts steps wants each of them
        if saver.is_idle and trained and self._is_checkpoint_due():
            self._prune_journal()
            saver.begin(self.learner)
        if saver.is_copying and self.pace.copy(saver.advance, self._num_copies) and self._is_sound(rows=False):
            self._cut_checkpoint(saver, self._open_source.positions)

    def _publish(self) -> None:
        """Begin the version that is due, go on with it, or end it."""
        publication = self.publication
        if publication is None:
            return
        if (problem := publication.note_acknowledged()) is not None:
            self._undo(problem, None)
            return
        if self._planned or not publication.is_due(self.learner):
            return
        is_ready = self.pace.copy(lambda budget: publication.collect(self.learner, budget), self._num_copies)
        if is_ready and self._is_sound(rows=False):
            publication.offer(self.learner, self._open_source.positions)

    @property
    def _num_copies(self) -> int:
        """How many share the time for copying."""
        is_saving = self.saver is not None and self.saver.is_copying
        is_collecting = self.publication is not None and self.publication.is_collecting
        return 2 if is_saving and is_collecting else 1

    def finish(self) -> None:
        """Checkpoint and publish the rest."""
        is_sound = self._is_sound(rows=True)
        while self._planned and not is_sound and not self.stop.is_set():  # the source has ended: repair first
            self.turn()
            is_sound = not self._planned and self._is_sound(rows=True)
        if is_sound and self.saver is not None:
            self.saver.wait()
            if self.learner.num_steps > self._checkpoint_step:
                self._cut_checkpoint(self.saver, self._open_source.positions)
                self.saver.wait()
                self._prune_journal()
        if is_sound and self.publication is not None and not self._planned:
            self.publication.finish(self.learner, self._open_source.positions)
        self._metrics = self.learner.metrics.summary()
        self.progress = self._progress()
        self._has_finished = True

    def close(self) -> None:
        """Close the connections, the source and the files."""
        if self.publisher is not None:
            self.publisher.close(release=self._has_finished)
        for part in (self.source, self.saver, self.journal, self.folder):
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
            num_set_aside=self._num_set_aside,
            num_lost=getattr(self.source, "num_lost", 0),
            is_recovering=bool(self._planned),
            claimant=self.claimant.name if self.claimant is not None else "",
            positions=dict(self._open_source.positions),
            oldest_waiting_ms=self.scheduler.oldest_record_ms(),
            newest_record_ms=learner.newest_record_ms,
            newest_event_ms=learner.newest_event_ms,
            unpublished_since_ms=self.publication.since_ms if self.publication is not None else 0,
            published=last.manifest if last else None,
            published_ms=last.acknowledged_ms if last else 0,
            epoch=self._epoch,
            retrieval_loss=report.retrieval_loss if report else None,
            ranking_loss=report.ranking_loss if report else None,
            num_items=learner.items.num_live,
            metrics=self._metrics,
        )

    # Checkpoints

    def _cut_checkpoint(self, saver: Saver, positions: dict[int, Position]) -> None:
        """The checkpoint is of this moment; the writing thread makes it visible."""
        if not saver.is_copying:
            saver.begin(self.learner)
        num_steps = self.learner.num_steps
        saver.cut(Checkpoint(num_steps, small_arrays(self.learner), self._meta(positions)))
        self._checkpoint_at_s, self._checkpoint_step = self._in(self.config.checkpoint_every_s), num_steps
        if self.journal is not None and self.source is not None:
            self.journal.start(num_steps, self._planned, self._set_aside)

    def _prune_journal(self) -> None:
        assert self.journal is not None
        assert self.folder is not None
        self.journal.prune(self.folder.steps()[0])

    def _meta(self, positions: dict[int, Position]) -> dict[str, Any]:
        """What a checkpoint says beside its arrays."""
        num_steps, publication = self.learner.num_steps, self.publication
        first = num_steps if publication is None else publication.first_step
        return {
            "model": self.model_config.as_dict(),
            "trainer": self.config.learning_dict(),
            "source": self._identity,
            "lineage": self._lineage,
            "parent": self._parent,
            "positions": {str(p): msgspec.structs.asdict(each) for p, each in positions.items()},
            "unpublished_first": first,
            "unpublished": publication.steps if publication is not None else [],
            "set_aside": sorted(each for each in self._set_aside if each >= min(first, num_steps)),
            "num_set_aside_interactions": self._num_set_aside,
        }


def _log_damage(what: str) -> None:
    log.error("checkpoint damaged", what=what)
