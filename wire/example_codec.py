"""The bytes of an example. Layout, version 1; every number little-endian:

    0   4   magic: "HRE", then the layout version as one byte
    4   8   xxh3-64 of everything from byte 12 on
    12  4   h, length of the header
    16  h   header: MessagePack array, the fields of `Header` in their order
            zero bytes up to a multiple of 8
            columns of the n sealed interactions
            columns of the m open interactions
            (m,) int64 open_first_offsets, (m,) int64 open_record_ms
            (r,) int64 recent_ids
            (u,) int64 user_feature_hash

Columns of k interactions with F features: (k,) int64 item_hash, (k,) int64 timestamp_ms, (k,) int64 domain_hash,
(k, F) int64 feature_hash, (k,) uint32 action_bits, (k,) float32 value. Every column starts at a multiple of 8 bytes
(but ``value`` at one of 4). Nothing follows the last one.

A reader refuses any other magic, version, length or checksum: damaged bytes never become an example.
"""

from __future__ import annotations

import struct
import sys

import msgspec
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from wire.errors import CodecError
from wire.example import CLOCK_START_MS, ZERO_COUNTS, Counts, Example, Interactions

MAGIC = b"HRE"
LAYOUT = 1
MAX_NAMES_BYTES = 200_000
"""An example carries at most this much text of names; an item that does not fit is named at its next sighting."""
_PREFIX = struct.Struct("<3sBQI")
_BODY_START = 12

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("state: expected a little-endian machine: columns are used as they lie in the bytes")


class Header(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Everything of an example that is no column. Field order is the layout."""

    user: str
    partition: int
    writer_epoch: int
    number: int
    num_interactions: int
    num_new: int
    first_new_index: int
    num_open: int
    num_unsent: int
    num_recent: int
    num_features: int
    num_user_features: int
    user_offset: int
    applied_offset: int
    replay_from_offset: int
    replay_clock_ms: int
    clock_ms: int
    newest_event_ms: int
    newest_record_ms: int
    counted_offset: int
    counts: Counts
    names: dict[int, str | int]
    is_fence: bool


_header_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(Header)


def pack(header: Header, columns: bytes) -> bytes:
    """The record of a header and its columns, laid out as above (``columns``: everything behind the padding)."""
    encoded = _header_encoder.encode(header)
    padding = -len(encoded) % 8
    body = b"".join((len(encoded).to_bytes(4, "little"), encoded, b"\0" * padding, columns))
    return b"".join((MAGIC, bytes((LAYOUT,)), xxh3_64_intdigest(body).to_bytes(8, "little"), body))


def unpack(value: bytes) -> tuple[Header, int]:
    """The header of a record and where its columns start, everything checked. Raises `CodecError`."""
    if len(value) < _PREFIX.size:
        raise CodecError(f"example: expected at least {_PREFIX.size} bytes, got {len(value)}; the record is cut off")
    magic, layout, checksum, header_len = _PREFIX.unpack_from(value)
    if magic != MAGIC:
        raise CodecError(f"example: expected bytes that start with {MAGIC!r}, got {magic!r}; this is no example")
    if layout != LAYOUT:
        raise CodecError(f"example: expected layout {LAYOUT}, got {layout}; read it with the build that knows it")
    digest = xxh3_64_intdigest(memoryview(value)[_BODY_START:])
    if digest != checksum:
        raise CodecError(f"example: expected checksum {checksum:#018x}, got {digest:#018x}; the record is damaged")
    end = _PREFIX.size + header_len
    try:
        header = _header_decoder.decode(memoryview(value)[_PREFIX.size : end])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CodecError(f"example: expected a header of layout {LAYOUT}, got {error}; its writer is wrong") from None
    start = end + -header_len % 8
    _check_sizes(header, len(value) - start)
    return header, start


def _check_sizes(header: Header, num_bytes: int) -> None:
    row = 32 + 8 * header.num_features
    sizes = (header.num_interactions, header.num_open, header.num_recent, header.num_features, header.num_user_features)
    expected = row * sizes[0] + (row + 16) * sizes[1] + 8 * (sizes[2] + sizes[4])
    if min(sizes) < 0 or expected != num_bytes:
        raise CodecError(f"example: expected {expected} bytes of columns, got {num_bytes}; its writer is wrong")
    if not (0 <= header.num_new <= header.num_interactions and 0 <= header.num_unsent <= header.num_open):
        raise CodecError("example: expected no more new (unsent) interactions than there are; its writer is wrong")


def encode_example(example: Example) -> bytes:
    """The bytes of an example. O(size); arrays may be of any layout and are converted to their column's type."""
    sealed, opened = example.interactions, example.open_interactions
    header = Header(
        example.user, example.partition, example.writer_epoch, example.number,
        len(sealed), example.num_new, example.first_new_index, len(opened), example.num_unsent,
        len(example.recent_ids), _num_features(sealed), len(example.user_feature_hash),
        example.user_offset, example.applied_offset, example.replay_from_offset, example.replay_clock_ms,
        example.clock_ms, example.newest_event_ms, example.newest_record_ms,
        example.counted_offset, example.counts, example.names, example.is_fence,
    )  # fmt: skip
    longs = (example.open_first_offsets, example.open_record_ms, example.recent_ids, example.user_feature_hash)
    columns = [*_column_bytes(sealed), *_column_bytes(opened), *(_bytes_of(column, "<i8") for column in longs)]
    joined = b"".join(columns)
    _check_sizes(header, len(joined))
    return pack(header, joined)


def decode_example(value: bytes) -> Example:
    """The example in these bytes; its arrays are read-only views of them. Raises `CodecError`, nothing else."""
    header, start = unpack(value)
    return view(header, value, start)


def view(header: Header, value: bytes, start: int = 0) -> Example:
    """The example of an unpacked header, its arrays views of ``value[start:]``."""
    num_features, num_open = header.num_features, header.num_open
    sealed, at = _interactions(value, start, header.num_interactions, num_features)
    opened, at = _interactions(value, at, num_open, num_features)
    offsets = np.frombuffer(value, np.int64, num_open, at)
    record_ms = np.frombuffer(value, np.int64, num_open, at + 8 * num_open)
    at += 16 * num_open
    recent = np.frombuffer(value, np.int64, header.num_recent, at)
    user_features = np.frombuffer(value, np.int64, header.num_user_features, at + 8 * header.num_recent)
    return Example(
        header.user, header.partition, header.writer_epoch, header.number, sealed, header.num_new,
        header.first_new_index, opened, offsets, recent, user_features, header.user_offset, header.applied_offset,
        header.replay_from_offset, header.clock_ms, header.newest_event_ms, header.newest_record_ms, header.names,
        header.is_fence, header.num_unsent, record_ms, header.replay_clock_ms, header.counted_offset,
        header.counts,
    )  # fmt: skip


def restamp(value: bytes, writer_epoch: int) -> bytes:
    """The same example under another writer epoch: what waits in an outbox goes out under its present owner."""
    header, start = unpack(value)
    if header.writer_epoch == writer_epoch:
        return value
    header.writer_epoch = writer_epoch
    return pack(header, value[start:])


def fence(partition: int, writer_epoch: int, number: int = -1) -> Example:
    """The mark of a new writer. ``number``: the next example number that it will write; -1 while it does not know."""
    nothing, none = no_interactions(), np.empty(0, np.int64)
    return Example(
        user="", partition=partition, writer_epoch=writer_epoch, number=number, interactions=nothing, num_new=0,
        first_new_index=0, open_interactions=nothing, open_first_offsets=none, recent_ids=none, user_feature_hash=none,
        user_offset=-1, applied_offset=-1, replay_from_offset=0, clock_ms=CLOCK_START_MS, newest_event_ms=-1,
        newest_record_ms=-1, is_fence=True, counts=ZERO_COUNTS,
    )  # fmt: skip


def no_interactions(num_features: int = 0) -> Interactions:
    """Empty columns."""
    return _interactions(b"", 0, 0, num_features)[0]


def _interactions(value: bytes, at: int, length: int, num_features: int) -> tuple[Interactions, int]:
    wide = 8 * length
    bits_at = at + wide * (3 + num_features)
    columns = Interactions(
        np.frombuffer(value, np.int64, length, at),
        np.frombuffer(value, np.uint32, length, bits_at),
        np.frombuffer(value, np.int64, length, at + wide),
        np.frombuffer(value, np.int64, length, at + 2 * wide),
        np.frombuffer(value, np.float32, length, bits_at + 4 * length),
        np.frombuffer(value, np.int64, length * num_features, at + 3 * wide).reshape(length, num_features),
    )
    return columns, bits_at + wide


def _column_bytes(rows: Interactions) -> tuple[bytes, ...]:
    longs = (rows.item_hash, rows.timestamp_ms, rows.domain_hash, rows.feature_hash)
    packed = tuple(_bytes_of(column, "<i8") for column in longs)
    return (*packed, _bytes_of(rows.action_bits, "<u4"), _bytes_of(rows.value, "<f4"))


def _bytes_of(column: NDArray[np.generic], dtype: str) -> bytes:
    return np.ascontiguousarray(column, dtype).tobytes()


def _num_features(rows: Interactions) -> int:
    return int(rows.feature_hash.shape[1]) if rows.feature_hash.ndim == 2 else 0
