"""The steps in the order in which they are trained: those recorded after the checkpoint, then new ones."""

from __future__ import annotations

import time

import structlog

from trainer.config import TrainerConfig
from trainer.sources.scheduler import Scheduler, num_in
from trainer.sources.source import Position, Source
from wire.example import Lesson
from wire.weights import PlanStep

log = structlog.get_logger("trainer")
POLL_S = 0.2


class StepFeed:
    """Turns a source's examples into steps.

    ``recorded``: steps to repeat, from number ``first_step`` on. ``is_live``: servers wait for the versions, so even a
    small step is formed at the latest `TrainerConfig.step_linger_s` after its first example.
    """

    def __init__(
        self, source: Source, config: TrainerConfig, max_context: int, *, recorded: list[PlanStep], first_step: int,
        is_live: bool,
    ) -> None:  # fmt: skip
        self._source, self._config, self._is_live = source, config, is_live
        self._scheduler = Scheduler(max_context, config.max_step_tokens, config.max_step_targets)
        self._new_from = first_step + len(recorded)
        source.max_buffered = max([source.max_buffered, *map(num_in, recorded)])
        self.recorded = list(recorded)
        """Recorded steps that are still to be repeated."""

    @property
    def is_repeating(self) -> bool:
        """Whether recorded steps are left."""
        return bool(self.recorded)

    @property
    def is_exhausted(self) -> bool:
        """Whether there will never be another step."""
        return self._source.exhausted and self._scheduler.num_waiting == 0

    def is_new(self, step: int) -> bool:
        """Whether the step with this number is decided here, not recorded."""
        return step >= self._new_from

    def next(self) -> tuple[PlanStep, list[Lesson]] | None:
        """The next step and its examples; None if they have not arrived."""
        return self._repeat() if self.recorded else self._decide()

    def _decide(self) -> tuple[PlanStep, list[Lesson]] | None:
        scheduler, source = self._scheduler, self._source
        deadline_s = self._linger_until()
        while scheduler.num_targets < self._config.max_step_targets and not source.exhausted:
            arrived = source.poll(POLL_S if not scheduler.num_waiting else max(0.0, deadline_s - time.monotonic()))
            if arrived and not scheduler.num_waiting:
                deadline_s = self._linger_until()
            scheduler.add(arrived)
            if not scheduler.num_waiting or (time.monotonic() >= deadline_s and self._is_live):
                break
        return scheduler.next_batch()

    def _linger_until(self) -> float:
        return time.monotonic() + self._config.step_linger_s

    def _repeat(self) -> tuple[PlanStep, list[Lesson]] | None:
        scheduler, step = self._scheduler, self.recorded[0]
        examples = scheduler.replay_batch(step)
        if examples is None:
            scheduler.add(self._source.poll(POLL_S))
            examples = scheduler.replay_batch(step)
        if examples is None and self._source.exhausted:
            log.error("recorded steps are left, but the source has ended", num_steps=len(self.recorded))
            self.recorded = []
        return None if examples is None else (self.recorded.pop(0), examples)

    def trained(self, step: PlanStep) -> None:
        """Move the `positions` past a step."""
        self._source.trained(step)

    @property
    def positions(self) -> dict[int, Position]:
        """After the last trained example of each partition."""
        return self._source.positions

    @property
    def num_lost(self) -> int:
        """Examples that compaction or retention removed before they were read."""
        return getattr(self._source, "num_lost", 0)

    def oldest_waiting_ms(self) -> dict[int, int]:
        """Partition → Kafka timestamp (ms) of what has waited longest; only partitions where something waits."""
        return self._scheduler.oldest_record_ms()

    def close(self) -> None:
        """Close the source."""
        self._source.close()
