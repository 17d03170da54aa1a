"""The plan of steps since the checkpoint, on disk before each step is trained.

One line a step: ``<xxh3-64 of the JSON, hex> <JSON [step, [[partition, first, last], …]]>``. A file begins at each
checkpoint (``journal-<first step>``); files older than the oldest checkpoint kept are removed. A torn last line was
never trained and is dropped. A write survives kill -9; with ``fsync`` it also survives a machine that loses power.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import xxhash

from trainer.errors import JournalError
from wire.weights import PlanStep


class Journal:
    """Appends to the newest journal file of a folder."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self._folder, self._fsync = folder, fsync
        self._descriptor = -1

    def start(self, first_step: int, steps: Sequence[PlanStep] = ()) -> None:
        """Begin a new file with what is already planned from ``first_step`` on; files of later steps are superseded."""
        self.close()
        path, temporary = self._folder / f"journal-{first_step:012d}", self._folder / "tmp-journal"
        try:
            temporary.write_bytes(b"".join(encode_line(first_step + index, step) for index, step in enumerate(steps)))
            temporary.rename(path)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise _unwritable(path, error) from error
        for later in journal_starts(self._folder):
            if later > first_step:
                (self._folder / f"journal-{later:012d}").unlink(missing_ok=True)

    def append(self, step: int, plan: PlanStep) -> None:
        """Record one step. Returns when it would survive a kill of this process."""
        line = encode_line(step, plan)
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(28, "no space left on device")
            if self._fsync:
                os.fdatasync(self._descriptor)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def prune(self, oldest_step: int) -> None:
        """Remove files whose steps all lie before ``oldest_step`` (the oldest checkpoint kept)."""
        starts = sorted(journal_starts(self._folder))
        for start, following in itertools.pairwise(starts):
            if following <= oldest_step:
                (self._folder / f"journal-{start:012d}").unlink(missing_ok=True)

    def close(self) -> None:
        """No more steps."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _unwritable(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"journal {path}: cannot be written ({error.strerror}); free space or fix the rights, and start "
        "again: nothing that was trained is lost"
    )


def journal_starts(folder: Path) -> list[int]:
    """First steps of the journal files present."""
    return [int(path.name.removeprefix("journal-")) for path in folder.glob("journal-*")]


def encode_line(step: int, plan: PlanStep) -> bytes:
    """One line of a journal."""
    text = json.dumps([step, plan], separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def read_journal(folder: Path, from_step: int) -> list[PlanStep]:
    """Recorded steps from ``from_step`` on, over all files; stops before the first damaged or missing line."""
    found: dict[int, PlanStep] = {}
    for start in sorted(journal_starts(folder)):
        for line in (folder / f"journal-{start:012d}").read_bytes().split(b"\n"):
            digest, _, text = line.partition(b" ")
            if xxhash.xxh3_64_hexdigest(text).encode() != digest:
                break
            step, plan = json.loads(text)
            found[step] = [(part[0], part[1], part[2]) for part in plan]
    steps: list[PlanStep] = []
    while from_step + len(steps) in found:
        steps.append(found[from_step + len(steps)])
    return steps
