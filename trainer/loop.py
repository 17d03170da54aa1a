"""The single pass: source → step → metrics, journalled before each step, checkpointed and published behind it.

At start the trainer is put back where its line of training stands: the checkpoint, then the steps recorded behind it
(in the journal, and in published versions), repeated exactly; only then does it decide on steps of its own.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from model.config import ModelConfig
from trainer.checkpoint import Checkpoint, CheckpointFolder
from trainer.config import TrainerConfig
from trainer.device import choose_device
from trainer.journal import Journal, read_journal
from trainer.plan import Backlog, Plan
from trainer.progress import Progress
from trainer.publisher import Publisher
from trainer.snapshot import learner_arrays, restore_learner, weights_snapshot
from trainer.source import Position, Source
from trainer.step import Learner, StepReport
from wire.example import Example
from wire.weights import Manifest, PlanStep

log = structlog.get_logger("trainer")
FLUSH_S = 15.0


class Trainer:
    """One trainer process's state and order of business. ``make_source`` gets the positions to read on from."""

    def __init__(
        self,
        model: ModelConfig,
        config: TrainerConfig,
        make_source: Callable[[dict[int, Position]], Source],
        *,
        checkpoint_dir: Path | None,
        publisher: Publisher | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.config = config
        self.learner = Learner(model, config, choose_device(config))
        self.stop = stop or threading.Event()
        self.publisher = publisher
        self.folder = (
            CheckpointFolder(checkpoint_dir, lambda what: log.error("checkpoint damaged", what=what))
            if checkpoint_dir
            else None
        )
        self.journal = Journal(checkpoint_dir, fsync=config.journal_fsync) if checkpoint_dir else None
        self.lineage = uuid.uuid4().hex
        self.unpublished: list[PlanStep] = []
        self.unpublished_first = 0
        self.progress = Progress()
        self._unpublished_since_ms = 0
        self._positions: dict[int, Position] = {}
        self._recover()
        self.source = make_source(self._positions)
        self.source.restore(self.learner.histories)
        self.backlog = Backlog(self.learner.max_context, config.max_step_tokens, config.max_step_targets)
        self._last_report: StepReport | None = None
        self._checkpoint_at = self._next(config.checkpoint_every_s)
        self._checkpoint_step = self.learner.num_steps
        self._publish_at = 0.0
        self._offered: Manifest | None = None
        self._has_published = False
        self._metrics: dict[str, Any] = {}
        self._metrics_at = 0.0

    # Start

    def _recover(self) -> None:
        """Checkpoint, journal and published versions → the learner's state, and the steps to repeat."""
        checkpoint = self.folder.load() if self.folder is not None else None
        if checkpoint is not None:
            self._restore(checkpoint)
        plan = Plan(self.unpublished_first)
        plan.lay(self.unpublished_first, self.unpublished)
        if self.folder is not None:
            plan.lay(
                self.learner.num_steps, read_journal(self.folder.path, self.learner.num_steps) if checkpoint else []
            )
        published_next = self._follow_published(plan, fresh=checkpoint is None) if self.publisher is not None else 0
        self.unpublished_first = max(plan.first_step, published_next)
        done = max(0, self.learner.num_steps - self.unpublished_first)
        self.unpublished = plan.after(self.unpublished_first)[:done]
        self._planned = plan.after(self.learner.num_steps)
        self._recorded_until = self.learner.num_steps + len(self._planned)
        if self._planned:
            log.info("repeating recorded steps", first_step=self.learner.num_steps, num_steps=len(self._planned))
        if self.folder is not None and checkpoint is None:
            self._write_checkpoint()
        if self.journal is not None:
            self.journal.start(self.learner.num_steps, self._planned)

    def _restore(self, checkpoint: Checkpoint) -> None:
        restore_learner(self.learner, checkpoint)
        meta = checkpoint.meta
        self.lineage = meta["lineage"]
        self._positions = msgspec.convert(meta["positions"], dict[int, Position], strict=False)
        self.unpublished_first = meta["unpublished_first"]
        self.unpublished = [as_step(step) for step in meta["unpublished"]]
        log.info(
            "checkpoint loaded", step=checkpoint.step, interactions=self.learner.num_interactions, lineage=self.lineage
        )

    def _follow_published(self, plan: Plan, *, fresh: bool) -> int:
        """Claim an epoch, lay the published steps onto the plan; the first step that no version contains."""
        assert self.publisher is not None
        manifests = self.publisher.claim(lambda found: self._is_enough(found, plan, fresh), self.stop)
        if fresh and manifests and self._is_ours(manifests[-1]):
            reaches_start = any(each.lineage == manifests[-1].lineage and each.first_step == 0 for each in manifests)
            if reaches_start:
                self.lineage = manifests[-1].lineage
                log.warning("no checkpoint: following the published steps from the first one", lineage=self.lineage)
        ours = [manifest for manifest in manifests if manifest.lineage == self.lineage]
        if not ours and manifests:
            log.warning("a new line of training begins", lineage=self.lineage, before=manifests[-1].lineage)
        for manifest in ours:
            plan.lay(manifest.first_step, [as_step(step) for step in manifest.plan], fixed_below=self.learner.num_steps)
        return ours[-1].next_step if ours else 0

    def _is_enough(self, found: list[Manifest], plan: Plan, fresh: bool) -> bool:
        lineage = found[-1].lineage if fresh and found else self.lineage
        if found and fresh and not self._is_ours(found[-1]):
            return True
        return any(each.lineage == lineage and each.first_step <= plan.first_step for each in found)

    def _is_ours(self, manifest: Manifest) -> bool:
        same_model = manifest.model_config == self.learner.model_config.as_dict()
        return (
            same_model
            and manifest.learning == self.config.learning_dict()
            and manifest.model_id == self.config.model_id
        )

    @staticmethod
    def _next(seconds: float) -> float:
        return time.monotonic() + seconds

    # The pass

    def run(self) -> None:
        """Train until the source is exhausted or ``stop`` is set; then checkpoint, publish what is left, and close."""
        if self.publisher is not None:
            self.publisher.start()
        try:
            while not self.stop.is_set() and self.turn():
                pass
            self._finish()
        finally:
            self._close()

    def turn(self) -> bool:
        """One round: fetch, train a step if there is one, then what is due. False when nothing will ever come."""
        ready = self._next_step()
        if ready is not None:
            self._train(*ready)
        self._keep_up(trained=ready is not None)
        return not (ready is None and self.source.exhausted and self.backlog.num_waiting == 0)

    def _next_step(self) -> tuple[PlanStep, list[Example]] | None:
        if self._planned:
            return self._repeat()
        deadline = self._next(self.config.step_linger_s)
        while self.backlog.num_targets < self.config.max_step_targets and not self.source.exhausted:
            arrived = self.source.poll(0.2 if not self.backlog.num_waiting else max(0.0, deadline - time.monotonic()))
            if arrived and not self.backlog.num_waiting:
                deadline = self._next(self.config.step_linger_s)
            self.backlog.add(arrived)
            if not self.backlog.num_waiting or (time.monotonic() >= deadline and self.publisher is not None):
                break
        return self.backlog.cut()

    def _repeat(self) -> tuple[PlanStep, list[Example]] | None:
        examples = self.backlog.follow(self._planned[0])
        if examples is None:
            self.backlog.add(self.source.poll(0.2))
            examples = self.backlog.follow(self._planned[0])
        if examples is None and self.source.exhausted:
            log.error("recorded steps are left, but the source has ended", num_steps=len(self._planned))
            self._planned = []
        return None if examples is None else (self._planned.pop(0), examples)

    def _train(self, step: PlanStep, examples: list[Example]) -> None:
        is_recorded = self.learner.num_steps < self._recorded_until
        if self.journal is not None and not is_recorded:
            self.journal.append(self.learner.num_steps, step)
        self._last_report = self.learner.step(examples)
        self.source.trained(step)
        if self.learner.num_steps > self.unpublished_first:
            self.unpublished.append(step)
            self._unpublished_since_ms = self._unpublished_since_ms or int(time.time() * 1000)

    def _keep_up(self, *, trained: bool) -> None:
        self._note_acknowledged()
        config = self.config
        by_steps = (
            config.checkpoint_every_steps > 0
            and self.learner.num_steps - self._checkpoint_step >= config.checkpoint_every_steps
        )
        by_time = time.monotonic() >= self._checkpoint_at and self.learner.num_steps > self._checkpoint_step
        if self.folder is not None and trained and (by_steps or by_time):
            self._checkpoint()
        if time.monotonic() >= self._publish_at:
            self._publish()
        if time.monotonic() >= self._metrics_at:
            self._metrics, self._metrics_at = self.learner.metrics.summary(), self._next(config.lag_every_s)
        self.progress = self._progress()

    def _finish(self) -> None:
        if self.folder is not None and self.learner.num_steps > self._checkpoint_step:
            self._checkpoint()
        if self.publisher is not None:
            self.publisher.flush(FLUSH_S)
            self._note_acknowledged()
            self._publish()
            if not self.publisher.flush(FLUSH_S):
                log.warning(
                    "the last version is not acknowledged: the next process publishes a base",
                    step=self.learner.num_steps,
                )
            self._note_acknowledged()
        self._metrics = self.learner.metrics.summary()
        self.progress = self._progress()

    def _close(self) -> None:
        for part in (self.publisher, self.source, self.journal, self.folder):
            if part is not None:
                part.close()

    def _progress(self) -> Progress:
        report, learner, publisher = self._last_report, self.learner, self.publisher
        last = publisher.last if publisher is not None else None
        return Progress(
            num_steps=learner.num_steps,
            num_interactions=learner.num_interactions,
            num_waiting=self.backlog.num_waiting,
            is_recovering=bool(self._planned),
            positions=dict(self.source.positions),
            oldest_waiting_ms=self.backlog.oldest_record_ms(),
            newest_record_ms=learner.newest_record_ms,
            newest_event_ms=learner.newest_event_ms,
            unpublished_since_ms=self._unpublished_since_ms,
            published=last.manifest if last else None,
            published_ms=last.acknowledged_ms if last else 0,
            epoch=publisher.epoch if publisher is not None else -1,
            retrieval_loss=report.retrieval_loss if report else None,
            ranking_loss=report.ranking_loss if report else None,
            num_items=learner.items.num_live,
            metrics=self._metrics,
        )

    # What outlives the process

    def _checkpoint(self) -> None:
        self._write_checkpoint()
        assert self.journal is not None
        assert self.folder is not None
        self.journal.start(self.learner.num_steps, self._planned)
        self.journal.prune(self.folder.steps()[0])

    def _write_checkpoint(self) -> None:
        assert self.folder is not None
        meta = {
            "model": self.learner.model_config.as_dict(),
            "trainer": self.config.learning_dict(),
            "lineage": self.lineage,
            "positions": {str(p): msgspec.structs.asdict(each) for p, each in self._current_positions().items()},
            "unpublished_first": self.unpublished_first,
            "unpublished": self.unpublished,
        }
        self.folder.write(Checkpoint(self.learner.num_steps, learner_arrays(self.learner), meta))
        self._checkpoint_at, self._checkpoint_step = self._next(self.config.checkpoint_every_s), self.learner.num_steps

    def _current_positions(self) -> dict[int, Position]:
        source = getattr(self, "source", None)
        return self._positions if source is None else source.positions

    def _note_acknowledged(self) -> None:
        if self.publisher is None:
            return
        self.publisher.check()
        if self._offered is not None and self.publisher.idle:
            self.unpublished = self.unpublished[len(self._offered.plan) :]
            self.unpublished_first = self._offered.next_step
            self._unpublished_since_ms = int(time.time() * 1000) if self.unpublished else 0
            self._offered, self._has_published = None, True

    def _publish(self) -> None:
        publisher = self.publisher
        if publisher is None or self._planned or self._offered is not None or not publisher.idle:
            return
        has_news = bool(self.unpublished) or not self._has_published
        if self.learner.num_steps == 0 or not (has_news or publisher.base_is_old):
            return
        everything = publisher.wants_base
        manifest = self._manifest(publisher, "base" if everything else "delta")
        publisher.offer(weights_snapshot(self.learner, everything=everything), manifest)
        self._offered, self._publish_at = manifest, self._next(self.config.publish_every_s)

    def _manifest(self, publisher: Publisher, kind: str) -> Manifest:
        learner, positions = self.learner, self.source.positions
        number = publisher.next_number
        return Manifest(
            model_id=self.config.model_id,
            epoch=publisher.epoch,
            number=number,
            kind=kind,
            onto_number=-1 if kind == "base" else number - 1,
            base_number=-1,
            base_offset=-1,
            dtype="float32",
            num_chunks=0,
            num_bytes=0,
            checksum="",
            covered={p: each.next_number - 1 for p, each in positions.items()},
            covered_offsets={p: each.covered_offset for p, each in positions.items()},
            newest_event_ms=learner.newest_event_ms,
            newest_record_ms=learner.newest_record_ms,
            num_interactions=learner.num_interactions,
            num_feedback=learner.num_feedback,
            plan=list(self.unpublished),
            first_step=self.unpublished_first,
            model_config=learner.model_config.as_dict(),
            learning=self.config.learning_dict(),
            lineage=self.lineage,
            created_ms=int(time.time() * 1000),
            metrics=learner.metrics.summary(),
        )


def as_step(step: Any) -> PlanStep:
    """A step as JSON gives it → tuples."""
    return [(int(partition), int(first), int(last)) for partition, first, last in step]
