"""The lessons in records of the sequences topic: all of a poll decoded at once, in C++.

What that leaves out (fences, marks, other layouts, damaged bytes) goes to `ExampleReader`, record by record, which
decides what becomes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.examples import GOOD, Block, decode_values
from wire.example import Int64, Lesson, row_type
from wire.example_codec import MARKS, Names, index_width
from wire.example_reader import ExampleReader

EMPTY_MAP = 0x80
"""An empty map in MessagePack."""
_NO_INDEX, _NO_BITS, _NO_FEATURES = np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.int64)
_names = msgspec.msgpack.Decoder(Names)


def lessons_of(
    reader: ExampleReader, partition: int, records: Sequence[Any], num_columns: int
) -> Iterator[tuple[Any, Lesson]]:
    """The records of a partition that are examples, in order, each with its lesson. ``num_columns``: of an interaction,
    as the features of nearly all. Raises what `ExampleReader.read` raises, once the records before are taken."""
    block = decode_values([record.value for record in records], row_type(num_columns))
    for record, head in zip(records, block.heads.tolist(), strict=True):
        lesson = _lesson(block, partition, head, reader.columns) or reader.read(partition, record.offset, record.value)
        if lesson is not None:
            yield record, lesson


def _lesson(block: Block, partition: int, head: tuple[int, ...], columns: tuple[int, int] | None) -> Lesson | None:
    """What a head of `kernels.examples.HEAD` stands for; None if that is for the reader to say."""
    (status, _, _, _, flags, epoch, number, segment, segment_len, first, num, rows_at, user_at, user_len, _,
     features_at, num_features, own_partition, num_new, num_feedback, feedback_at, names_at, names_len, resume_from,
     record_ms) = head  # fmt: skip
    if status != GOOD or flags & MARKS or own_partition != partition or (columns and columns[1] != num_features):
        return None
    data, names = block.data, dict[int, str | int]()
    try:
        user = data[user_at : user_at + user_len].decode()
        if names_len != 1 or data[names_at] != EMPTY_MAP:
            names = _names.decode(memoryview(data)[names_at : names_at + names_len])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    index, bits = (_NO_INDEX, _NO_BITS) if not num_feedback else _feedback(data, feedback_at, num_feedback, segment_len)
    # Copied, since the history that keeps it would keep the whole poll's bytes.
    features = _NO_FEATURES if not num_features else np.frombuffer(data, np.int64, num_features, features_at).copy()
    return Lesson(
        user, partition, epoch, number, segment, segment_len, block.rows[rows_at : rows_at + num], num_new, index, bits,
        features, resume_from, record_ms, first=first, names=names,
    )  # fmt: skip


def _feedback(data: bytes, at: int, num: int, segment_len: int) -> tuple[Int64, NDArray[np.uint32]]:
    index = np.frombuffer(data, np.uint8 if index_width(segment_len) == 1 else np.uint16, num, at)
    return index.astype(np.int64), np.frombuffer(data, np.uint32, num, at + index.nbytes)
