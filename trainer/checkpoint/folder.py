"""The trainer's whole state, in a folder that one rename makes visible.

``checkpoint-<steps>/`` holds ``arrays.safetensors`` (the small arrays), ``rows.log`` (pieces of the large ones,
`trainer.copies.rows`) and ``meta.json`` (the rest, with the checksums of both files and, in its last line, its own). A
checkpoint is **whole**, or an **increment**: the rows that changed since another one, which it names by step and by the
checksum of its ``meta.json``. The newest two whole ones are kept, with their increments. If one cannot be read, or
builds on one that cannot, the one before it is used, and the damage is logged.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self

import xxhash
from numpy.typing import NDArray

from trainer.checkpoint.reading import FORMAT, Checkpoint, is_increment, read_checkpoint
from trainer.copies.rows import Arrays, Piece, encode_piece
from trainer.errors import CheckpointError
from wire.tensors import Buffer, Tensors

NUM_KEPT = 2
NUM_DIGITS = 12
"""Digits of the numbers in file names."""


class Draft:
    """Pieces of the next checkpoint on their way to disk. Raises OSError if they cannot be written.

    ``onto``: the step of the checkpoint that they are changes of, and its digest; None for a whole one.
    """

    def __init__(self, path: Path, file: io.FileIO, onto: tuple[int, str] | None) -> None:
        self.path, self.onto, self.num_bytes = path, onto, 0
        self._digest, self._file = xxhash.xxh3_128(), file

    def append(self, piece: Piece) -> None:
        """Add a piece."""
        for buffer in encode_piece(piece):
            _write_all(self._file, buffer)
            self._digest.update(buffer)
            self.num_bytes += len(buffer)

    def close(self) -> str:
        """Sync it to disk; returns the checksum of all of it."""
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Close it without making it part of a checkpoint."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class CheckpointFolder:
    """Writes and finds checkpoints; once `open`, holds the folder's lock, so that two trainers never share one."""

    def __init__(self, path: Path, on_damage: Callable[[str], None]) -> None:
        self.path, self._on_damage = path, on_damage
        self._lock: IO[str] | None = None

    def open(self) -> Self:
        """Take the folder's lock, and remove what a kill left half written. Raises `CheckpointError`."""
        path = self.path
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / "lock").open("w")
        except OSError as error:
            raise CheckpointError(
                f"checkpoint_dir {path}: cannot be used ({error.strerror}); name a folder that this user may write to"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise CheckpointError(
                f"checkpoint_dir {path}: another trainer is using it; stop that one, or name another folder"
            ) from error
        for left in path.glob("tmp-*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        self._lock = lock
        return self

    def close(self) -> None:
        """Release the folder's lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def steps(self) -> list[int]:
        """Step counts of the existing checkpoints, oldest first."""
        return numbered(self.path, "checkpoint")

    def present_steps(self) -> list[int]:
        """`steps` while a trainer runs, which has written at least one. Raises `CheckpointError` if none is left."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"checkpoint_dir {self.path}: expected this trainer's checkpoints, they are gone; put them back and "
                "start again. Without them it follows the published steps; --from-published begins at the last version"
            )
        return steps

    def draft(self, onto: tuple[int, str] | None) -> Draft:
        """Begin the rows of a checkpoint; `write` makes it visible. One at a time. Raises OSError."""
        path = self.path / "tmp-rows"
        return Draft(path, path.open("wb", buffering=0), onto)

    def write(self, checkpoint: Checkpoint, draft: Draft | None = None) -> str:
        """Write, sync, rename; then remove what is no longer needed. Returns the checkpoint's digest, for increments.

        ``draft``: its rows, if ``checkpoint.arrays`` has only what is small. If it fails, nothing visible has changed.
        """
        temporary = self.path / f"tmp-{checkpoint.step:012d}"
        final = self.path / f"checkpoint-{checkpoint.step:012d}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            blob = Tensors(checkpoint.arrays)
            write_file(temporary / "arrays.safetensors", *blob.parts)
            meta = {
                "format": FORMAT,
                "step": checkpoint.step,
                "arrays_xxh3": blob.checksum(),
                "arrays_bytes": blob.num_bytes,
                "rows": None,
                **checkpoint.meta,
            }
            if draft is not None:
                meta["rows"] = {"onto": draft.onto, "bytes": draft.num_bytes, "xxh3": draft.close()}
                draft.path.rename(temporary / "rows.log")
            text = json.dumps(meta).encode()
            digest = xxhash.xxh3_128_hexdigest(text)
            write_file(temporary / "meta.json", text + b"\n" + digest.encode() + b"\n")
            sync_folder(temporary)  # its entries, before its name says that they are there
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            sync_folder(self.path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise unwritable(final, error) from error
        self._prune()
        return digest

    def _prune(self) -> None:
        """Drop what is older than the newest whole checkpoints. Whatever cannot be read counts as whole."""
        steps = self.steps()
        whole = [step for step in steps if not is_increment(self._folder_of(step))]
        for step in steps:
            if step < whole[-NUM_KEPT:][0]:
                shutil.rmtree(self._folder_of(step), ignore_errors=True)

    def _folder_of(self, step: int) -> Path:
        return self.path / f"checkpoint-{step:012d}"

    def load(self, *, entries: bool = True) -> Checkpoint | None:
        """The newest readable checkpoint; None if there is none. Raises `CheckpointError` if all are damaged.

        ``entries``: see `trainer.copies.rows.assembled`.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return read_checkpoint(self._folder_of(step), entries=entries)
            except CheckpointError as error:
                self._on_damage(f"{error}; falling back to the previous one")
        if steps:
            raise CheckpointError(
                f"checkpoint_dir {self.path}: none of its {len(steps)} checkpoints can be read; restore one, or "
                "name an empty folder to train from scratch"
            )
        return None


def numbered(folder: Path, kind: str) -> list[int]:
    """The numbers of files named ``kind-<number>``, ascending; other files are ignored."""
    found = (each.name.removeprefix(f"{kind}-") for each in folder.glob(f"{kind}-*"))
    return sorted(int(number) for number in found if len(number) == NUM_DIGITS and number.isdecimal())


def unwritable(path: Path, error: OSError) -> CheckpointError:
    """The error of a checkpoint that cannot be written."""
    return CheckpointError(
        f"checkpoint {path}: cannot be written ({error.strerror}); free some space or fix the permissions, "
        "and start again: the previous checkpoint is intact"
    )


def flatten(nested: Mapping[str, Mapping[str, NDArray[Any]]]) -> Arrays:
    """{part: {name: array}} → {"part.name": array}."""
    return {f"{part}.{name}": array for part, arrays in nested.items() for name, array in arrays.items()}


def part_of(arrays: Arrays, part: str) -> Arrays:
    """The inverse of `flatten`, for one part."""
    return {name[len(part) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{part}.")}


def write_file(path: Path, *content: Buffer, sync: bool = True) -> None:
    """Write a file, which with ``sync`` is on disk on return; its name is, after `sync_folder`. Raises OSError."""
    with path.open("wb", buffering=0) as file:
        for buffer in content:
            _write_all(file, buffer)
        if sync:
            os.fsync(file.fileno())


def _write_all(file: io.FileIO, buffer: Buffer) -> None:
    view = memoryview(buffer)
    while view:
        view = view[file.write(view) or 0 :]


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
