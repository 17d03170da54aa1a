"""Records of the sequences topic as columns, Kafka batches at a time, in C++.

The definition is `wire.example_codec`, which decodes one record; what these columns cannot hold (a fence, another
layout, damaged bytes) is left to it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.library import baseline

GOOD, TOMBSTONE, OTHER = 0, 1, 2
HEAD = np.dtype([
    (name, "<i8")
    for name in (
        "status", "offset", "value_at", "value_len", "flags", "writer_epoch", "number", "segment", "segment_len",
        "first", "num", "rows_at", "user_at", "user_len", "newest_event_ms", "user_features_at", "num_user_features",
        "partition",
    )
])  # fmt: skip
"""What is known of a record. ``…_at``: where in the batch's bytes; ``rows_at``: in the rows."""
BYTES_OF_A_ROW = 13
"""An interaction takes at least so many in a record."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """``heads`` (records,) `HEAD`; ``rows`` (n,) of the caller's type, those of the `GOOD` records, in their order."""

    data: bytes
    heads: NDArray[np.void]
    rows: NDArray[np.void]

    def value(self, record: int) -> bytes:
        """The bytes of a record's value."""
        at, size = int(self.heads["value_at"][record]), int(self.heads["value_len"][record])
        return bytes(self.data[at : at + size])


def decode_block(batches: Sequence[tuple[int, int, bytes | bytearray]], row_type: np.dtype[np.void]) -> Block:
    """Decode batches of records, each (offset that theirs are counted from, records, bytes, not compressed any more).

    ``row_type``: as `wire.history.row_type` lays out. Raises ValueError for bytes that are no batch,
    `KernelUnavailable` without compiled kernels.
    """
    data = b"".join([each[2] for each in batches])
    shapes = np.array([each[:2] for each in batches], np.int64)
    heads = np.empty(int(shapes[:, 1].sum()), HEAD)
    rows = np.empty(len(data) // BYTES_OF_A_ROW + 1, row_type)
    source = np.frombuffer(data, np.uint8)
    function = baseline("headrace_decode_examples")
    function.restype = ctypes.c_int64
    num_rows = function(
        ctypes.c_void_p(source.ctypes.data), ctypes.c_int64(len(data)), ctypes.c_int64(len(batches)),
        ctypes.c_void_p(shapes.ctypes.data), ctypes.c_int64((row_type.itemsize - 32) // 8),
        ctypes.c_void_p(heads.ctypes.data), ctypes.c_void_p(rows.ctypes.data), ctypes.c_int64(len(rows)),
    )  # fmt: skip
    if num_rows < 0:
        raise ValueError(f"records: expected {len(heads)} in Kafka's batches, got {len(data)} bytes that are not")
    return Block(data, heads, rows[:num_rows])
