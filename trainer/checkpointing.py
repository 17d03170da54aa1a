"""When the next checkpoint is due, and the journal of the steps after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.journal import Journal
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import small_arrays
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from trainer.publication import Publication
from trainer.recovery import Resumed
from trainer.set_aside import SetAside
from trainer.sources.source import Position
from wire.weights import PlanStep

log = structlog.get_logger("trainer")


class Checkpointing:
    """The checkpoints and the journal in one folder. For the training thread only."""

    def __init__(self, folder: Path, config: TrainerConfig) -> None:
        self._config = config
        self._due_s = 0.0
        self._identity: dict[str, Any] = {}
        self._lineage = self._parent = ""
        self.folder = CheckpointFolder(folder, _log_damage)
        self.saver = Saver(self.folder)
        self.journal = Journal(folder, fsync=config.journal_fsync)
        self.last_step = 0
        """Number of the first step that is not in the last checkpoint."""

    def resume(self, resumed: Resumed, identity: dict[str, Any]) -> None:
        """Continue from ``resumed``. ``identity``: that of the examples' source."""
        self._lineage, self._parent, self._identity = resumed.lineage, resumed.parent, identity

    def wait_from(self, step: int) -> None:
        """Let the interval to the next checkpoint begin now, at ``step``."""
        self._due_s, self.last_step = time.monotonic() + self._config.checkpoint_every_s, step

    def begin_if_due(self, learner: Learner) -> None:
        """Begin the checkpoint that is due, if one is, and the last was written."""
        num_new = learner.num_steps - self.last_step
        by_steps = 0 < self._config.checkpoint_every_steps <= num_new
        if by_steps and not self.saver.is_copying:
            self.saver.settle()  # with an interval in steps, none may be left out; the next turn checks it
        if self.saver.is_idle and (by_steps or (num_new > 0 and time.monotonic() >= self._due_s)):
            self.prune()
            self.saver.begin(learner)

    def cut(
        self,
        learner: Learner,
        positions: dict[int, Position],
        recorded: Sequence[PlanStep],
        set_aside: SetAside,
        publication: Publication | None,
    ) -> None:
        """Complete the checkpoint as of this moment; the saver's thread makes it visible.

        ``recorded``: steps that are still to be repeated; the next journal begins with them.
        """
        num_steps = learner.num_steps
        if not self.saver.is_copying:
            self.saver.begin(learner)
        meta = self._meta(learner, positions, set_aside, publication)
        self.saver.cut(Checkpoint(num_steps, small_arrays(learner), meta))
        self.wait_from(num_steps)
        self.journal.start(num_steps, recorded, set_aside.steps)

    def _meta(
        self, learner: Learner, positions: dict[int, Position], set_aside: SetAside, publication: Publication | None
    ) -> dict[str, Any]:
        """A checkpoint's metadata."""
        first = learner.num_steps if publication is None else publication.first_step
        return {
            "model": learner.model_config.as_dict(),
            "trainer": self._config.learning_dict(),
            "source": self._identity,
            "lineage": self._lineage,
            "parent": self._parent,
            "positions": {str(p): msgspec.structs.asdict(each) for p, each in positions.items()},
            "unpublished_first": first,
            "unpublished": publication.steps if publication is not None else [],
            "set_aside": sorted(each for each in set_aside.steps if each >= min(first, learner.num_steps)),
            "num_set_aside_interactions": set_aside.num_interactions,
        }

    def prune(self) -> None:
        """Remove the journals of steps before the oldest checkpoint. Raises `CheckpointError` if there is none."""
        self.journal.prune(self.folder.present_steps()[0])

    def close(self) -> None:
        """End the saver's thread, and close the files."""
        for part in (self.saver, self.journal, self.folder):
            part.close()


def _log_damage(what: str) -> None:
    log.error("checkpoint damaged", what=what)
