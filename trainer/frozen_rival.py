"""The value of fresh weights on live traffic: the learner is compared with a copy that was frozen some time ago.

The copy is the newest checkpoint, read by a thread of its own, so no step waits for it. It is renewed every
``trainer.frozen_every_s``, and predicts choices that the learner has just predicted, without having learned them (both
use the learner's histories, which are always up to date). That is done on the same thread, which takes at most
``trainer.frozen_share`` of the time; choices beyond that are left out. Nothing here changes the learner.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from trainer.checkpoint.folder import CheckpointFolder
from trainer.config import TrainerConfig
from trainer.copies.regions import regions_of
from trainer.examples.batch import JaggedBatch
from trainer.frozen import Frozen
from trainer.learner.step import Learner
from trainer.metrics.prequential import rank_gains, rank_report
from trainer.metrics.ring import Ring
from trainer.network.graph import ALONE

Int64 = NDArray[np.int64]
log = structlog.get_logger("trainer")
FEWEST_RANKED = 200
"""With fewer choices nothing is reported, unless the whole window is smaller."""
MOST_SCORES = 1 << 21
"""The most scores computed in one step; choices beyond that are left out."""
MOST_WAITING = 64
"""The most steps whose choices wait to be compared; those of later steps are left out."""
RIVALS = ("fresh", "frozen")


@dataclass(slots=True)
class Allowance:
    """A budget of time that grows by a share of the time that passes, up to a limit."""

    share: float
    most_s: float = 0.05
    left_s: float = 0.0
    at_s: float = 0.0

    def has_any(self, now_s: float) -> bool:
        """Whether some is left at this moment."""
        self.left_s = min(self.most_s, self.left_s + self.share * (now_s - self.at_s))
        self.at_s = now_s
        return self.left_s > 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Comparison:
    """Choices that the copy is to rank, with the learner's ranks."""

    copy: Frozen
    rank_C: Int64
    coming: Future[tuple[Int64, float]]


class FrozenRival:
    """For the training thread: `renew` between steps, `compare` within them."""

    def __init__(self, config: TrainerConfig, folder: CheckpointFolder) -> None:
        self._config, self._folder = config, folder
        self._thread = ThreadPoolExecutor(1, "frozen")
        self._coming: Future[Frozen | None] | None = None
        self._copy: Frozen | None = None
        self._waiting = deque[_Comparison]()
        self._ranks = Ring(config.metric_window, len(RIVALS))
        self._allowance = Allowance(config.frozen_share)
        self._due_s = 0.0
        self._from_step = 0
        """The step of the first checkpoint that may have learned enough for a comparison."""

    @property
    def step(self) -> int | None:
        """The first step that the copy has not learned; None if there is no copy."""
        return self._copy.num_steps if self._copy is not None else None

    def renew(self, learner: Learner) -> None:
        """Take over the copy that has been read, or start reading one if it is due."""
        now_s = time.monotonic()
        if self._coming is not None:
            if self._coming.done():
                self._take(self._coming)
            return
        is_due = now_s >= self._due_s and learner.num_interactions >= self._config.metric_window
        if is_due and self._folder.steps()[-1:] >= [self._from_step]:
            self._due_s = now_s + self._config.frozen_every_s
            if self._fits(learner):
                self._coming = self._thread.submit(_read, self._folder, learner)

    def _fits(self, learner: Learner) -> bool:
        num_bytes = sum(each.num_rows * each.row_bytes for each in regions_of(learner, for_version=False))
        if num_bytes <= self._config.frozen_bytes:
            return True
        log.info("no frozen copy to compare with: it is larger than trainer.frozen_bytes", num_bytes=num_bytes)
        return False

    def _take(self, coming: Future[Frozen | None]) -> None:
        self._coming = None
        try:
            copy = coming.result()
        except Exception:  # as in `compare`
            log.exception("no frozen copy to compare with; trying again when the next one is due")
            return
        if copy is not None and copy.num_interactions < self._config.metric_window:
            self._from_step, self._due_s = copy.num_steps + 1, 0.0
        elif copy is not None:
            self._copy, self._ranks = copy, Ring(self._config.metric_window, len(RIVALS))
            log.info("comparing with a frozen copy", step=copy.num_steps, num_interactions=copy.num_interactions)

    def compare(self, batch: JaggedBatch, rank_S: Int64, step: int) -> None:
        """Have the copy predict those choices of a batch that the learner has ranked; ``rank_S``: -1 for the others.
        ``step``: in which the learner has predicted them; the copy must not have learned it."""
        self._note_compared()
        if self._copy is None or step < self._copy.num_steps:
            return
        if len(self._waiting) >= MOST_WAITING or not self._allowance.has_any(time.perf_counter()):
            return
        choice_C = np.flatnonzero(rank_S >= 0)[: max(1, MOST_SCORES // self._copy.items.num_rows)]
        if len(choice_C):
            coming = self._thread.submit(_rank, self._copy, batch, choice_C)
            self._waiting.append(_Comparison(self._copy, rank_S[choice_C], coming))

    def _note_compared(self) -> None:
        """Take over what the thread has ranked; what an earlier copy has ranked does not count."""
        while self._waiting and self._waiting[0].coming.done():
            done = self._waiting.popleft()
            if done.copy is not self._copy:
                continue
            try:
                frozen_C, seconds = done.coming.result()
            except Exception:
                # Whatever the error is, learning must go on.
                log.exception("the frozen copy failed; no comparison until the next one")
                self._copy = None
                return
            self._ranks.extend(np.stack([done.rank_C, frozen_C], axis=1))
            self._allowance.left_s -= seconds

    def report(self) -> dict[str, Any] | None:
        """The metrics of both on the same choices, and what the copy had learned; None before enough was compared."""
        self._note_compared()
        copy = self._copy
        if copy is None or self._ranks.filled < min(FEWEST_RANKED, self._config.metric_window):
            return None
        return {
            "num_interactions": copy.num_interactions,
            "newest_record_ms": copy.newest_record_ms,
            **rank_report(rank_gains(self._ranks.view().T.astype(np.int64)).sum(axis=2).T, RIVALS),
        }

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _rank(copy: Frozen, batch: JaggedBatch, choice_C: Int64) -> tuple[Int64, float]:
    """The copy's ranks of these choices, and how many seconds that took."""
    with ALONE:
        began_s = time.perf_counter()
        return copy.rank_choices(batch, choice_C), time.perf_counter() - began_s


def _read(folder: CheckpointFolder, learner: Learner) -> Frozen | None:
    """The newest checkpoint's learner, without names and users, which are not needed."""
    checkpoint = folder.load(entries=False)
    if checkpoint is None:
        return None
    with ALONE:
        return Frozen(learner.model_config, learner.config, learner.device, checkpoint.arrays)
