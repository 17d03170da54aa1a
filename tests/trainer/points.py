"""Points in a trainer's code at which a test interrupts it: ``name:nth:kill``, ``name:nth:stop`` (SIGSTOP) or
``name:nth:term`` (SIGTERM).

The real trainer runs unchanged up to that point.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import wraps
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trainer.checkpoint.folder
import trainer.checkpoint.journal
import trainer.learner.step
import trainer.loop
import trainer.ranks.messages
import trainer.versions.publisher
import trainer.versions.writer

Point = Callable[[], bool]
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


def install(which: str) -> None:
    """Make this process end (or halt) when it reaches a point for the nth time."""
    name, nth, action = which.split(":")
    left = iter(range(int(nth) - 1, -1, -1))

    def reach(half: Callable[[], Any] | None = None) -> None:
        if next(left, -1) == 0:
            if half is not None:
                half()
            os.kill(os.getpid(), SIGNALS[action])

    (POINTS | RANK_POINTS)[name](reach)


def _before(owner: Any, name: str, reach: Callable[..., None]) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*given: Any, **named: Any) -> Any:
        reach()
        return original(*given, **named)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, reach: Callable[..., None]) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*given: Any, **named: Any) -> Any:
        result = original(*given, **named)
        reach()
        return result

    setattr(owner, name, wrapped)


def half_a_journal_line(reach: Callable[..., None]) -> None:
    """Leave the journal's last line torn."""
    write = os.write

    def wrapped(descriptor: int, content: bytes) -> int:
        if b" [" in content:
            reach(lambda: write(descriptor, content[: len(content) // 2]))
        return write(descriptor, content)

    trainer.checkpoint.journal.os.write = wrapped  # type: ignore[attr-defined]


def half_a_checkpoint(reach: Callable[..., None]) -> None:
    """Leave a file of a checkpoint torn."""
    original = trainer.checkpoint.folder.write_file

    def wrapped(path: Path, *content: Any, sync: bool = True) -> None:
        whole = b"".join(content)
        reach(lambda: path.write_bytes(whole[: len(whole) // 2]))
        original(path, *content, sync=sync)

    trainer.checkpoint.folder.write_file = wrapped


def checkpoint_visible(reach: Callable[..., None]) -> None:
    """A checkpoint has its name, which is not synced."""
    original = trainer.checkpoint.folder.sync_folder

    def wrapped(path: Path) -> None:
        if not path.name.startswith("tmp-"):
            reach()
        original(path)

    trainer.checkpoint.folder.sync_folder = wrapped


def half_a_piece(reach: Callable[..., None]) -> None:
    """A piece of a checkpoint's rows is torn."""
    original = trainer.checkpoint.folder._write_all

    def wrapped(file: Any, buffer: Any) -> None:
        if file.name.endswith("tmp-rows"):
            reach(lambda: original(file, memoryview(buffer)[: len(buffer) // 2]))
        original(file, buffer)

    trainer.checkpoint.folder._write_all = wrapped


def half_of_the_chunks(reach: Callable[..., None]) -> None:
    """Leave a version torn, with only its first chunk."""
    original = Writer.send_chunks

    def wrapped(self: Any, number: int, blob: Any) -> int:
        first = SimpleNamespace(chunks=lambda size: islice(blob.chunks(size), 1))
        reach(lambda: original(self, number, first))
        return original(self, number, blob)

    Writer.send_chunks = wrapped  # type: ignore[method-assign]


Learner, Publisher = trainer.learner.step.Learner, trainer.versions.publisher.Publisher
Writer = trainer.versions.writer.WeightsWriter
Folder, Journal = trainer.checkpoint.folder.CheckpointFolder, trainer.checkpoint.journal.Journal
POINTS: dict[str, Callable[[Callable[..., None]], None]] = {
    "half_a_journal_line": half_a_journal_line,
    "journalled": lambda reach: _before(Learner, "step", reach),
    "learned": lambda reach: _after(Learner, "step", reach),
    "half_a_piece": half_a_piece,
    "half_a_checkpoint": half_a_checkpoint,
    "checkpoint_hidden": lambda reach: _after(trainer.checkpoint.folder, "write_file", reach),
    "checkpoint_visible": checkpoint_visible,
    "checkpointed": lambda reach: _after(Folder, "write", reach),
    "journal_started": lambda reach: _after(Journal, "start", reach),
    "claimed": lambda reach: _after(Publisher, "lead", reach),
    "half_of_the_chunks": half_of_the_chunks,
    "chunks_sent": lambda reach: _after(Writer, "send_chunks", reach),
    "fence_checked": lambda reach: _before(trainer.versions.writer, "encode_manifest", reach),
    "published": lambda reach: _after(Writer, "send_manifest", reach),
}
FILE_POINTS = tuple(list(POINTS)[:9])
Ranks = trainer.ranks.messages.Ranks
RANK_POINTS: dict[str, Callable[[Callable[..., None]], None]] = {
    "given": lambda reach: _after(Ranks, "give", reach),
    "taken": lambda reach: _after(Ranks, "take", reach),
    "answered": lambda reach: _after(Ranks, "answer", reach),
    "to_be_summed": lambda reach: _before(Ranks, "summed", reach),
    "summed": lambda reach: _after(Ranks, "summed", reach),
    "to_be_swapped": lambda reach: _before(Ranks, "swapped", reach),
    "swapped": lambda reach: _after(Ranks, "swapped", reach),
}
"""Points between processes that train together."""
