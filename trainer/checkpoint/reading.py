"""Reads checkpoints (`trainer.checkpoint.folder`): everything is verified by its checksum before it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import xxhash
from safetensors.numpy import load as load_tensors

from trainer.copies.rows import Arrays, assembled, decode_pieces
from trainer.errors import CheckpointError

FORMAT, READABLE = 3, (2, 3)
"""Format 2 has the keys of interactions in two places (`model.rates`, `trainer.metrics.kinds`)."""
MOST_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """``arrays``: nested state, with names joined by dots. ``meta``: plain JSON."""

    step: int
    arrays: Arrays
    meta: dict[str, Any]


def read_checkpoint(path: Path, *, entries: bool = True) -> Checkpoint:
    """Read and verify one checkpoint and what it builds on. Raises `CheckpointError`."""
    meta, _ = _read_meta(path)
    small = load_tensors(_read_verified(path, "arrays.safetensors", meta["arrays_bytes"], meta["arrays_xxh3"]))
    if meta.get("rows") is None:
        return Checkpoint(meta["step"], small, meta)
    pieces = (piece for file in _row_files(path, meta) for piece in decode_pieces(file))
    return Checkpoint(meta["step"], assembled(small, pieces, entries=entries), meta)


def is_increment(path: Path) -> bool:
    """Whether it is readable, and holds what changed since another one."""
    try:
        rows = _read_meta(path)[0].get("rows")
    except CheckpointError:
        return False
    return rows is not None and rows["onto"] is not None


def _row_files(path: Path, meta: dict[str, Any]) -> Iterator[IO[bytes]]:
    """The rows of a whole checkpoint, then of its increments up to this one, each verified."""
    chain = [(path, meta)]
    while (onto := chain[-1][1]["rows"]["onto"]) is not None:
        step, digest = onto
        below = path.parent / f"checkpoint-{step:012d}"
        below_meta, found = _read_meta(below)
        if found != digest or below_meta.get("rows") is None:
            raise CheckpointError(
                f"checkpoint {chain[-1][0]}: builds on another {below.name} than the one that is here"
            )
        chain.append((below, below_meta))
    for each, its_meta in reversed(chain):
        rows = its_meta["rows"]
        with _opened(each, "rows.log") as file:
            digest, num_bytes = xxhash.xxh3_128(), 0
            while part := file.read(MOST_READ_BYTES):  # not whole: giving a gigabyte back holds the interpreter
                digest.update(part)
                num_bytes += len(part)
            _check(each, "rows.log", (num_bytes, digest.hexdigest()), (rows["bytes"], rows["xxh3"]))
            file.seek(0)
            yield file


def _read_meta(path: Path) -> tuple[dict[str, Any], str]:
    """A checkpoint's meta, and its digest."""
    try:
        text, _, digest = (path / "meta.json").read_bytes().strip().rpartition(b"\n")
        if xxhash.xxh3_128_hexdigest(text).encode() != digest:
            raise CheckpointError(f"checkpoint {path}: meta.json is damaged (its checksum does not match)")
        meta = json.loads(text)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error})") from error
    if meta["format"] not in READABLE:
        raise CheckpointError(
            f"checkpoint {path}: expected format {FORMAT}, got {meta['format']}; use the build that wrote it, or start "
            "with an empty trainer.checkpoint_dir"
        )
    return meta, digest.decode()


def _read_verified(path: Path, name: str, num_bytes: int, digest: str) -> bytes:
    with _opened(path, name) as file:
        blob = file.read()
    _check(path, name, (len(blob), xxhash.xxh3_128_hexdigest(blob)), (num_bytes, digest))
    return blob


@contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    try:
        with (path / name).open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error})") from error


def _check(path: Path, name: str, found: tuple[int, str], expected: tuple[int, str]) -> None:
    """Compare lengths and checksums."""
    if found != expected:
        raise CheckpointError(
            f"checkpoint {path}: {name} is damaged (expected {expected[0]} bytes with checksum {expected[1]}, got "
            f"{found[0]} other bytes)"
        )
