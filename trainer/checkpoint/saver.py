"""Saves checkpoints: copied in slices between the steps, checked and written by a thread of its own.

An increment holds what has changed since the checkpoint before it. A checkpoint is whole if it is the process's first,
if more than half has changed, or if the increments have grown as large as what they build on. So writing costs at most
twice the changes, and loading at most twice a whole checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from model.dirty import UNSAVED
from trainer.checkpoint.folder import CheckpointFolder, Draft, unwritable
from trainer.checkpoint.reading import Checkpoint
from trainer.copies.regions import names_of, regions_of, users_of
from trainer.copies.rows import Piece
from trainer.copies.soundness import Unsound, unsound_piece
from trainer.copies.sweep import Sweep
from trainer.learner.step import Learner

MOST_QUEUED_BYTES = 64 << 20
"""How much may wait to be written; beyond that, nothing is copied."""
WHOLE_SHARE = 0.5
MOST_INCREMENTS = 32


class Saver:
    """For the training thread: `begin`, `advance` until it returns True, `cut`; and `check` in between."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._sweep: Sweep | None = None
        self._is_writing = False
        self._lock, self._queued_bytes = threading.Lock(), 0
        # For the writing thread; the training thread uses these only while it is idle.
        self._draft: Draft | None = None
        self._failure: BaseException | None = None
        self._problem: Unsound | None = None
        self._last: tuple[int, str] | None = None
        self._whole_bytes = self._increment_bytes = self._num_increments = 0
        self.written_ms = int(time.time() * 1000)
        """When a checkpoint became visible; before the first, when this began."""
        self._built_on: list[int] = []
        """Steps of the checkpoints that the next increment would build on."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being copied or written."""
        return self._sweep is None and not self._is_writing

    @property
    def is_copying(self) -> bool:
        """Whether a checkpoint was begun and not yet `cut`."""
        return self._sweep is not None

    def begin(self, learner: Learner) -> None:
        """Start to copy; only when idle."""
        assert self.is_idle, "a checkpoint was begun while another is being made"
        regions, entries = (
            regions_of(learner, for_version=False),
            [names_of(learner, for_version=False), users_of(learner)],
        )
        changes = Sweep(regions, entries, UNSAVED, self._give, whole=False)
        num_bytes = sum(region.num_rows * region.row_bytes for region in regions)
        is_whole = (
            self._last is None
            or not set(self._built_on) <= set(self._folder.steps())  # one of them was removed
            or self._num_increments >= MOST_INCREMENTS
            or self._increment_bytes >= self._whole_bytes
            or changes.left_bytes() > WHOLE_SHARE * num_bytes
        )
        self._sweep = Sweep(regions, entries, UNSAVED, self._give, whole=True) if is_whole else changes
        self._submit(self._open, None if is_whole else self._last)

    def advance(self, budget_bytes: int) -> bool:
        """Copy about ``budget_bytes``; True once the rest is small enough to `cut`."""
        assert self._sweep is not None, "begin() comes first"
        return self._queued_bytes <= MOST_QUEUED_BYTES and self._sweep.advance(budget_bytes)

    def cut(self, checkpoint: Checkpoint) -> None:
        """Copy the rest: the checkpoint is the learner as it is now. ``checkpoint``: its small arrays and its meta."""
        assert self._sweep is not None, "begin() comes first"
        self._sweep.finish()
        self._sweep, self._is_writing = None, True
        self._submit(self._finish, checkpoint)

    def check(self) -> Unsound | None:
        """What is not finite among the copied rows, if anything; the checkpoint is then dropped.

        Raises the error that the writing thread met.
        """
        if self._failure is not None:
            raise self._failure
        problem = self._problem
        if problem is not None:
            self.abandon()
        return problem

    def settle(self) -> None:
        """Wait until everything is written; `check` says whether it was."""
        self._thread.submit(lambda: None).result()

    def wait(self) -> Unsound | None:
        """`settle`, and `check`."""
        self.settle()
        return self.check()

    def abandon(self) -> None:
        """Drop the checkpoint that is being copied. One that was `cut` is still written, unless it is not finite."""
        self._sweep = None
        self._thread.submit(self._discard).result()
        self._is_writing, self._problem, self._last = False, None, None  # the next one is whole
        self._queued_bytes = 0

    def close(self) -> None:
        """End the thread; an incomplete checkpoint is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._discard()

    # The writing thread

    def _submit(self, work: Callable[..., None], *given: Any) -> None:
        self._thread.submit(self._guarded, work, *given)

    def _guarded(self, work: Callable[..., None], *given: Any) -> None:
        if self._failure is not None or self._problem is not None:
            return
        try:
            work(*given)
        except OSError as error:
            self._failure = unwritable(self._folder.path, error)
        except BaseException as error:  # noqa: BLE001  (`check` raises it on the training thread)
            self._failure = error

    def _give(self, piece: Piece) -> None:
        with self._lock:
            self._queued_bytes += piece.num_bytes
        self._submit(self._append, piece)

    def _open(self, onto: tuple[int, str] | None) -> None:
        self._draft = self._folder.draft(onto)

    def _append(self, piece: Piece) -> None:
        assert self._draft is not None
        with self._lock:
            self._queued_bytes -= piece.num_bytes
        self._problem = unsound_piece(piece)
        if self._problem is None:
            self._draft.append(piece)

    def _finish(self, checkpoint: Checkpoint) -> None:
        draft = self._draft
        assert draft is not None
        self._last = checkpoint.step, self._folder.write(checkpoint, draft)
        self.written_ms = int(time.time() * 1000)
        self._built_on = [*(self._built_on if draft.onto else ()), checkpoint.step]
        if draft.onto is None:
            self._whole_bytes, self._increment_bytes, self._num_increments = draft.num_bytes, 0, 0
        else:
            self._increment_bytes += draft.num_bytes
            self._num_increments += 1
        self._draft, self._is_writing = None, False

    def _discard(self) -> None:
        if self._draft is not None:
            self._draft.discard()
        self._draft = None
