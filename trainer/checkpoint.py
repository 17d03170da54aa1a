"""The trainer's whole state, in a folder that one rename makes visible.

``checkpoint-<steps>/arrays.safetensors`` (all tensors) and ``meta.json`` (the rest, with the checksum of the arrays
and, in its last line, its own). The newest two are kept: if one cannot be read, the one before is used, and the damage
is logged.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from trainer.errors import CheckpointError

FORMAT = 2
NUM_KEPT = 2
NUM_DIGITS = 12
"""Digits of the numbers in file names."""
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """``arrays``: nested state, with names joined by dots. ``meta``: plain JSON."""

    step: int
    arrays: Arrays
    meta: dict[str, Any]


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

    def write(self, checkpoint: Checkpoint) -> None:
        """Write, sync, rename; then remove all but the newest two. If it fails, nothing visible has changed."""
        temporary = self.path / f"tmp-{checkpoint.step:012d}"
        final = self.path / f"checkpoint-{checkpoint.step:012d}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            blob = save_tensors({name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()})
            _write_synced(temporary / "arrays.safetensors", blob)
            meta = {
                "format": FORMAT,
                "step": checkpoint.step,
                "arrays_xxh3": xxhash.xxh3_128_hexdigest(blob),
                "arrays_bytes": len(blob),
                **checkpoint.meta,
            }
            text = json.dumps(meta).encode()
            _write_synced(temporary / "meta.json", text + b"\n" + xxhash.xxh3_128_hexdigest(text).encode() + b"\n")
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            _sync_folder(self.path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint {final}: cannot be written ({error.strerror}); free some space or fix the permissions, "
                "and start again: the previous checkpoint is intact"
            ) from error
        for step in self.steps()[:-NUM_KEPT]:
            shutil.rmtree(self.path / f"checkpoint-{step:012d}", ignore_errors=True)

    def load(self) -> Checkpoint | None:
        """The newest readable checkpoint; None if there is none. Raises `CheckpointError` if all are damaged."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                return read_checkpoint(self.path / f"checkpoint-{step:012d}")
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


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises `CheckpointError`."""
    try:
        text, _, digest = (path / "meta.json").read_bytes().strip().rpartition(b"\n")
        if xxhash.xxh3_128_hexdigest(text).encode() != digest:
            raise CheckpointError(f"checkpoint {path}: meta.json is damaged (its checksum does not match)")
        meta = json.loads(text)
        blob = (path / "arrays.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error})") from error
    if meta["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {path}: expected format {FORMAT}, got {meta['format']}; use the build that wrote it, or start "
            "with an empty trainer.checkpoint_dir"
        )
    if len(blob) != meta["arrays_bytes"] or xxhash.xxh3_128_hexdigest(blob) != meta["arrays_xxh3"]:
        raise CheckpointError(
            f"checkpoint {path}: arrays.safetensors is damaged (expected {meta['arrays_bytes']} bytes with "
            f"checksum {meta['arrays_xxh3']}, got {len(blob)} other bytes)"
        )
    return Checkpoint(meta["step"], load_tensors(blob), meta)


def flatten(nested: Mapping[str, Mapping[str, NDArray[Any]]]) -> Arrays:
    """{part: {name: array}} → {"part.name": array}."""
    return {f"{part}.{name}": array for part, arrays in nested.items() for name, array in arrays.items()}


def part_of(arrays: Arrays, part: str) -> Arrays:
    """The inverse of `flatten`, for one part."""
    return {name[len(part) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{part}.")}


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
