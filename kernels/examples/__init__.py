"""Decodes records of the sequences topic into columns, many at a time, in C++.

The definition is `wire.example_codec`, which decodes single records; it is also used for what these columns cannot hold
(fences, other layouts, damaged bytes).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kernels.library import baseline, pointer

GOOD, TOMBSTONE, OTHER = 0, 1, 2
HEAD = np.dtype([
    (name, "<i8")
    for name in (
        "status", "offset", "value_at", "value_len", "flags", "writer_epoch", "number", "segment", "segment_len",
        "first", "num", "rows_at", "user_at", "user_len", "newest_event_ms", "user_features_at", "num_user_features",
        "partition", "num_new", "num_feedback", "feedback_at", "names_at", "names_len", "resume_from_offset",
        "newest_record_ms",
    )
])  # fmt: skip
"""What is known about a record. ``…_at``: offset in the batch's bytes; ``rows_at``: in the rows."""
BYTES_OF_A_ROW = 13
"""The least number of bytes of an interaction in a record."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """``heads`` (records,) of type `HEAD`; ``rows`` (n,) of the caller's type, of the `GOOD` records, in order."""

    data: bytes
    heads: NDArray[np.void]
    rows: NDArray[np.void]

    def value(self, record: int) -> bytes:
        """The bytes of a record's value."""
        at, size = int(self.heads["value_at"][record]), int(self.heads["value_len"][record])
        return bytes(self.data[at : at + size])

    def headers(self, record: int) -> dict[str, bytes]:
        """The Kafka headers of a record from a batch: they follow its value. Those before bytes that are none."""
        at, found = int(self.heads["value_at"][record] + max(self.heads["value_len"][record], 0)), dict[str, bytes]()
        with suppress(IndexError):
            num, at = _zigzag(self.data, at)
            for _ in range(num):
                name, at = _sized(self.data, at)
                value, at = _sized(self.data, at)
                found[name.decode(errors="replace")] = value
        return found


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    """An integer as Kafka writes it, and where the next byte is."""
    found = shift = 0
    while True:
        found |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return found >> 1 ^ -(found & 1), at


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    """Bytes behind their length (none for -1), and where the next byte is."""
    size, at = _zigzag(data, at)
    end = at + max(0, size)
    return bytes(data[at:end]), end


def decode_block(batches: Sequence[tuple[int, int, bytes | bytearray]], row_type: np.dtype[np.void]) -> Block:
    """Decode batches of records, each (base offset, number of records, uncompressed bytes).

    ``row_type``: as `wire.example.row_type` makes it. Raises ValueError for bytes that are not a batch,
    `KernelUnavailable` without compiled kernels.
    """
    data = b"".join([each[2] for each in batches])
    shapes = np.array([each[:2] for each in batches], np.int64)
    if (fewest := int(shapes[:, 1].min(initial=0))) < 0:
        raise ValueError(f"records: expected 0 or more in each of Kafka's batches, got {fewest}")
    given = ctypes.c_int64(len(data)), ctypes.c_int64(len(batches)), ctypes.c_void_p(pointer(shapes))
    return _decoded("headrace_decode_examples", data, int(shapes[:, 1].sum()), row_type, *given)


def decode_values(values: Sequence[bytes | None], row_type: np.dtype[np.void]) -> Block:
    """Decode the values of records, None for a tombstone; otherwise as `decode_block`, but no record has an offset.

    Raises `KernelUnavailable` without compiled kernels.
    """
    data = b"".join([value for value in values if value is not None])
    lengths = np.array([-1 if value is None else len(value) for value in values], np.int64)
    given = ctypes.c_int64(len(values)), ctypes.c_void_p(pointer(lengths))
    block = _decoded("headrace_decode_values", data, len(values), row_type, *given)
    # A copy, since examples that wait keep it, and would keep room for as many rows as the bytes could hold.
    return replace(block, rows=block.rows.copy())


def _decoded(
    name: str, data: bytes, num: int, row_type: np.dtype[np.void], *given: ctypes.c_int64 | ctypes.c_void_p
) -> Block:
    """What a kernel makes of ``num`` records; ``given``: what it is told of the bytes besides."""
    heads, source = np.empty(num, HEAD), np.frombuffer(data, np.uint8)
    rows = np.empty(len(data) // BYTES_OF_A_ROW + 1, row_type)
    function = baseline(name)
    function.restype = ctypes.c_int64
    num_rows = function(
        ctypes.c_void_p(pointer(source)), *given, ctypes.c_int64((row_type.itemsize - 32) // 8),
        ctypes.c_void_p(pointer(heads)), ctypes.c_void_p(pointer(rows)), ctypes.c_int64(len(rows)),
    )  # fmt: skip
    if num_rows < 0:
        raise ValueError(f"records: expected {num} in Kafka's batches, got {len(data)} bytes that are not")
    return Block(data, heads, rows[:num_rows])
