"""The plan of steps since the checkpoint; each step is on disk before it is trained.

One line per step: ``<xxh3-64 of the JSON, hex> <JSON [step, [[partition, first, last], …]]>``; ``[step, null]`` says
that a step is set aside. Each checkpoint starts a new file (``journal-<first step>``), which replaces what older files
say about its steps; files that end before the oldest checkpoint kept are removed. A torn last line was never trained
and is dropped. A write survives kill -9; with ``fsync`` it also survives a power failure.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import xxhash

from trainer.checkpoint.folder import numbered, sync_folder, write_file
from trainer.checkpoint.plan import Plan, parse_steps
from trainer.errors import JournalError
from wire.weights import PlanStep


class Journal:
    """Appends to the newest journal file of a folder."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self._folder, self._fsync = folder, fsync
        self._descriptor = -1

    def start(self, first_step: int, steps: Sequence[PlanStep] = (), set_aside: Collection[int] = ()) -> None:
        """Start a new file with what is already planned from ``first_step`` on; it replaces files of later steps."""
        self.close()
        path, temporary = self._folder / f"journal-{first_step:012d}", self._folder / "tmp-journal"
        try:
            lines = [encode_line(number, step) for number, step in enumerate(steps, first_step)]
            lines += [encode_line(number, None) for number in sorted(set_aside) if number >= first_step]
            write_file(temporary, b"".join(lines), sync=self._fsync)
            temporary.rename(path)
            self._sync()
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            for later in [each for each in journal_starts(self._folder) if each > first_step]:
                (self._folder / f"journal-{later:012d}").unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise _unwritable(path, error) from error

    def _sync(self) -> None:
        """Have the folder's entries survive a power failure, if what is in the files shall."""
        if self._fsync:
            sync_folder(self._folder)

    def append(self, step: int, plan: PlanStep | None) -> None:
        """Record one step, or (None) that it is set aside. On return the record survives a kill of this process."""
        line = encode_line(step, plan)
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(28, "no space left on device")
            if self._fsync:
                os.fdatasync(self._descriptor)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def read(self, from_step: int) -> Plan:
        """What is recorded from ``from_step`` on."""
        return read_journal(self._folder, from_step)

    def prune(self, oldest_step: int) -> None:
        """Remove files whose steps are all before ``oldest_step`` (the oldest checkpoint kept)."""
        starts = sorted(journal_starts(self._folder))
        for start, following in itertools.pairwise(starts):
            if following <= oldest_step:
                (self._folder / f"journal-{start:012d}").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _unwritable(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"journal {path}: cannot be written ({error.strerror}); free some space or fix the permissions, and start "
        "again: nothing that was trained is lost"
    )


def journal_starts(folder: Path) -> list[int]:
    """First steps of the existing journal files."""
    return numbered(folder, "journal")


def encode_line(step: int, plan: PlanStep | None) -> bytes:
    """One line of a journal."""
    text = json.dumps([step, plan], separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def read_journal(folder: Path, from_step: int) -> Plan:
    """What is recorded from ``from_step`` on, over all files; stops before the first damaged or missing line."""
    found: dict[int, PlanStep] = {}
    set_aside: set[int] = set()
    for start in sorted(journal_starts(folder)):
        found = {step: plan for step, plan in found.items() if step < start}
        set_aside = {step for step in set_aside if step < start}
        for step, plan in _lines(folder / f"journal-{start:012d}"):
            if plan is None:
                set_aside.add(step)
            else:
                found[step] = plan
    steps = list(itertools.takewhile(lambda step: step in found, itertools.count(from_step)))
    recorded = Plan(from_step)
    recorded.merge(from_step, [found[step] for step in steps], set_aside=set_aside)
    return recorded


def _lines(path: Path) -> Iterator[tuple[int, PlanStep | None]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JournalError(f"journal {path}: cannot be read ({error.strerror}); fix permissions or disk") from error
    for line in content.split(b"\n"):
        digest, _, text = line.partition(b" ")
        if xxhash.xxh3_64_hexdigest(text).encode() != digest:
            return
        step, plan = json.loads(text)
        yield step, None if plan is None else parse_steps([plan])[0]
