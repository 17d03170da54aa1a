"""What has been learned but not published: when the next version is due, and what its manifest says."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import msgspec
import structlog

from trainer.copies.soundness import Unsound
from trainer.learner.step import Learner
from trainer.recovery import Resumed
from trainer.sources.source import Position
from trainer.versions.collection import Collection
from trainer.versions.publisher import MakeManifest, Publisher
from trainer.versions.quality import quality_of
from trainer.versions.rounding import Rounding
from wire.weights import Manifest, PlanStep

log = structlog.get_logger("trainer")
FLUSH_S = 15.0
MOST_RUNS = 20_000
"""The most runs of examples in a manifest's plan: some 600 kB, where a broker takes 1 MB by default. Then the next
version is due, however long ``trainer.publish_every_s`` is."""


class Publication:
    """Keeps the steps since the newest acknowledged version, and offers the next one. For the training thread only."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._lineage = self._parent = ""
        self._source: dict[str, Any] = {}
        self._set_aside: set[int] = set()
        self._offered: int | None = None
        """First step that is not in the version on its way."""
        self._collection: Collection | None = None
        self._rounding = Rounding()
        self._has_published = False
        self._due_s = 0.0
        self.first_step = 0
        """Number of the first of ``steps``."""
        self.steps: list[PlanStep] = []
        self._num_runs = 0
        self.since_ms = 0
        """Since when there has been something to publish (ms, wall clock); 0 if there is nothing."""

    def resume(self, resumed: Resumed, learner: Learner, source: dict[str, Any]) -> None:
        """Continue after what is published. ``source``: the identity of the examples' source."""
        self._lineage, self._parent, self._source = resumed.lineage, resumed.parent, source
        self._set_aside = resumed.plan.set_aside
        self.first_step = resumed.unpublished_first
        self._take(resumed.unpublished(learner))

    def _take(self, steps: list[PlanStep]) -> None:
        self.steps, self._num_runs = steps, sum(map(len, steps))

    def rewind(self, set_aside: set[int]) -> None:
        """Note that the learner went back, and skips the steps ``set_aside``: the next version is a base."""
        self._set_aside, self._collection = set_aside, None
        self._publisher.need_base()

    def learned(self, number: int, step: PlanStep) -> None:
        """Note a step that was learned, perhaps for the second time."""
        if number == self.first_step + len(self.steps):
            self.steps.append(step)
            self._num_runs += len(step)
            self.since_ms = self.since_ms or int(time.time() * 1000)

    def note_acknowledged(self) -> Unsound | None:
        """Forget the steps that the broker has acknowledged. Raises the error that ended the publishing thread.

        Returns what is not finite in a version that was not published because of it, if anything.
        """
        self._publisher.check()
        if self._offered is None or not self._publisher.idle:
            return None
        if self._publisher.unsound:
            self._offered = None
            return Unsound(self._publisher.unsound)
        self._take(self.steps[self._offered - self.first_step :])
        self.first_step, self._offered, self._has_published = self._offered, None, True
        self.since_ms = int(time.time() * 1000) if self.steps else 0
        return None

    def is_due(self, learner: Learner) -> bool:
        """Whether the next version should be offered now."""
        publisher = self._publisher
        if self._collection is not None:
            return True
        is_early = time.monotonic() < self._due_s and self._num_runs < MOST_RUNS
        if is_early or self._offered is not None or not publisher.idle:
            return False
        has_news = bool(self.steps) or not self._has_published
        return learner.num_steps > 0 and (has_news or publisher.base_is_old)

    @property
    def is_collecting(self) -> bool:
        """Whether a version is being copied."""
        return self._collection is not None

    def collect(self, learner: Learner, budget_bytes: int) -> bool:
        """Copy about ``budget_bytes`` of the version that is due; True once the rest is small enough to `offer`."""
        if self._collection is None:
            self._collection = Collection(learner, whole=self._publisher.wants_base)
            self._due_s = time.monotonic() + learner.config.publish_every_s
        return self._collection.advance(budget_bytes)

    def offer(self, learner: Learner, positions: dict[int, Position]) -> None:
        """Copy the rest, and hand the version, the learner as it is now, to the publishing thread."""
        collection = self._collection
        assert collection is not None, "collect() comes first"
        self._collection = None
        kind = "base" if collection.is_whole else "delta"
        rounding = self._rounding if learner.config.publish_precision == "half" else None
        manifest = self._manifest(learner, positions)

        def make_manifest(**more: Any) -> Manifest:
            return manifest(rounding=rounding.errors if rounding is not None else {}, **more)

        self._publisher.offer(kind, collection.cut(learner, rounding), make_manifest)
        self._offered = self.first_step + len(self.steps)

    def finish(self, learner: Learner, positions: dict[int, Position]) -> None:
        """Publish the rest; waits for at most `FLUSH_S` at a time."""
        self._publisher.flush(FLUSH_S)
        if self.note_acknowledged() is not None:  # what it would have carried no delta has
            self._publisher.need_base()
        self._due_s = 0.0
        if self.is_due(learner):
            self.collect(learner, 0)
            self.offer(learner, positions)
        if not self._publisher.flush(FLUSH_S):
            log.warning(
                "the last version is not acknowledged: the next process publishes a base", step=learner.num_steps
            )
        self.note_acknowledged()

    def _manifest(self, learner: Learner, positions: dict[int, Position]) -> MakeManifest:
        summary = learner.metrics.summary()
        steps = range(self.first_step, self.first_step + len(self.steps))
        return partial(
            Manifest,
            model_id=learner.config.model_id,
            covered={p: each.next_number - 1 for p, each in positions.items()},
            covered_offsets=learner.histories.covered({p: each.covered_offset for p, each in positions.items()}),
            newest_event_ms=learner.newest_event_ms,
            newest_record_ms=learner.newest_record_ms,
            num_interactions=learner.num_interactions,
            num_feedback=learner.num_feedback,
            plan=list(self.steps),
            first_step=self.first_step,
            set_aside=sorted(self._set_aside.intersection(steps)),
            model_config=learner.model_config.as_dict(),
            learning=learner.config.learning_dict(),
            lineage=self._lineage,
            parent=self._parent,
            source=self._source,
            positions={p: msgspec.structs.asdict(each) for p, each in positions.items()},
            metrics=summary,
            quality=quality_of(learner, summary),
        )
