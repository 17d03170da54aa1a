"""The bytes of an example. Layout, version 3; every number little-endian, no padding:

    0   4   magic: "HRE", then the layout version as one byte
    4   4   CRC-32 (zlib's) of everything from byte 8 on
    8   2   h, length of the header
    10  h   header: MessagePack array, the fields of `Header` in their order
            columns of the n interactions
            (i,) int64 action_ids, (u,) int64 user_feature_hash
            (f,) uint8 or uint16 feedback_index (uint16 where segment_len > 256), (f,) uint32 feedback_bits

A **mark** (flags 128 to 1024; `wire.example.Mark`) has no interactions: forget users, forget an item, learn it again.
Marks were added after the layout: to a reader that does not know them, they are examples of nothing.

Columns of n interactions with F features, in this order: (n,) int64 item_hash; (n,) uint32 timestamp_ms less
``base_ms`` (int64, and base 0, with flag LONG_TIMES); (n,) action_bits as uint8, uint16 or uint32, the narrowest that
holds them (``bits_width`` bytes); then, each only where its flag says that any differs from "none": (n,) int64
domain_hash, (n,) float32 value, (n, F) int64 feature_hash, (n,) int64 session_hash, (n,) uint8 id_counts. Nothing
follows the last one.

A reader refuses any other magic, version, length or checksum: damaged bytes never become an example. Layouts 1 (whole
contexts, keyed by user) and 2 (whole segments) are refused too: sequences in them have to be rebuilt under a new
``kafka.prefix``.
"""

from __future__ import annotations

import struct
import sys
from functools import lru_cache
from typing import Annotated, Any, TypeVar
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from wire.errors import CodecError
from wire.example import (
    Address,
    Counts,
    Example,
    Int64,
    Interactions,
    Mark,
    address_of,
    address_of_mark,
    num_features_of,
    rows_of,
)  # fmt: skip
from wire.json_value import decode_json

MAGIC = b"HRE"
LAYOUT = 3
MAX_NAMES_BYTES = 60_000
"""An example carries at most this much text of names (a header's length has 16 bits); an item that does not fit is
named at its next sighting."""
LONG_TIMES, DOMAINS, VALUES, FEATURES, SESSIONS, FENCE, IDS = 1, 2, 4, 8, 16, 32, 64
ALWAYS = 1 << 30
"""Stands for a flag where a column is in every record."""
MARKS = Mark.USER | Mark.ITEM | Mark.ITEM_BACK | Mark.USERS
"""A record with one of these flags has no interactions."""
MAX_COUNT, MAX_SEGMENT, MAX_NUMBER = 1 << 20, 1 << 40, 1 << 60
"""The most that a record may state: of interactions, columns, ids or feedback; its segment; its number and its writer's
epoch. What is computed from them fits into 64 bits."""
_MAX_INT = (1 << 63) - 1
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
_Segment = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEGMENT)]
_Number = Annotated[int, msgspec.Meta(ge=-1, le=MAX_NUMBER)]
_Signed = Annotated[int, msgspec.Meta(ge=-_MAX_INT - 1, le=_MAX_INT)]
Names = dict[_Signed, str | _Signed]
"""Item hash → the producer's id."""
_users = msgspec.json.Decoder(list[str])
_PREFIX = struct.Struct("<3sBIH")
_BODY_START = 8
Number = TypeVar("Number", bound=np.generic)
_UINTS: dict[int, type[np.unsignedinteger]] = {1: np.uint8, 2: np.uint16, 4: np.uint32}

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("wire: expected a little-endian machine: columns are used in place")


class Header(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """All of an example except its columns. Field order is the layout: what the records of a batch have in common is
    adjacent, so that compression finds it as one piece."""

    partition: _Signed
    writer_epoch: _Number
    segment_len: _Count
    num_features: _Count
    num_user_features: _Count
    applied_offset: _Signed
    resume_from_offset: _Signed
    counted_offset: _Signed
    counts: Counts
    newest_event_ms: _Signed
    newest_record_ms: _Signed
    base_ms: _Signed
    user_offset: _Signed
    user_index: _Signed
    number: _Number
    segment: _Segment
    first: _Count
    num_interactions: _Count
    num_new: _Count
    num_feedback: _Count
    num_ids: _Count
    flags: _Signed
    bits_width: _Signed
    user: str
    names: Names

    @property
    def address(self) -> Address:
        """What the record's key stands for."""
        if self.flags & MARKS:
            return address_of_mark(self.flags & MARKS, next(iter(self.names), 0))
        return address_of(self.user, self.segment, self.first, self.num_interactions, self.segment_len)


_START = MAGIC + bytes((LAYOUT,))
_header_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(Header)


def pack(header: Header, columns: bytes) -> bytes:
    """The record of a header and its columns, laid out as above."""
    encoded = _header_encoder.encode(header)
    body = b"".join((len(encoded).to_bytes(2, "little"), encoded, columns))
    return b"".join((_START, crc32(body).to_bytes(4, "little"), body))


def unpack(value: bytes) -> tuple[Header, int]:
    """The header of a record and where its columns start, everything checked. Raises `CodecError`."""
    if len(value) < _PREFIX.size:
        raise CodecError(f"example: expected at least {_PREFIX.size} bytes, got {len(value)}; the record is cut off")
    magic, layout, checksum, header_len = _PREFIX.unpack_from(value)
    if magic != MAGIC:
        raise CodecError(f"example: expected bytes that start with {MAGIC!r}, got {magic!r}; this is not an example")
    if layout != LAYOUT:
        raise CodecError(f"example: expected layout {LAYOUT}, got {layout}; read it with a build that supports it")
    digest = crc32(memoryview(value)[_BODY_START:])
    if digest != checksum:
        raise CodecError(f"example: expected checksum {checksum:#010x}, got {digest:#010x}; the record is damaged")
    start = _PREFIX.size + header_len
    try:
        header = _header_decoder.decode(memoryview(value)[_PREFIX.size : start])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CodecError(f"example: expected a header of layout {LAYOUT}, got {error}; its writer is wrong") from None
    _check_sizes(header, len(value) - start)
    return header, start


def _check_sizes(header: Header, num_bytes: int) -> None:
    num, flags = header.num_interactions, header.flags
    sizes = (
        header.first, num, header.num_new, header.num_feedback, header.num_ids, header.num_features,
        header.num_user_features, header.segment, header.segment_len - 1,
    )  # fmt: skip
    if min(sizes) < 0 or max(header.counts) > _MAX_INT or header.bits_width not in _UINTS:
        raise CodecError("example: expected counts of 0 or more and widths of 1, 2 or 4; its writer is wrong")
    row = 8 + (8 if flags & LONG_TIMES else 4) + header.bits_width
    row += 8 * bool(flags & DOMAINS) + 4 * bool(flags & VALUES) + 8 * bool(flags & SESSIONS) + bool(flags & IDS)
    row += 8 * header.num_features * bool(flags & FEATURES)
    expected = num * row + 8 * (header.num_ids + header.num_user_features)
    expected += header.num_feedback * (4 + index_width(header.segment_len))
    if expected != num_bytes:
        raise CodecError(f"example: expected {expected} bytes of columns, got {num_bytes}; its writer is wrong")
    if header.num_new > num or header.num_feedback > num - header.num_new or num + header.first > header.segment_len:
        raise CodecError("example: expected no more new interactions and feedback than there are; its writer is wrong")
    if flags & MARKS and (num or flags & MARKS not in tuple(Mark)):
        raise CodecError("example: expected one mark and no interactions, or no mark; its writer is wrong")
    if flags & (Mark.ITEM | Mark.ITEM_BACK) and len(header.names) != 1:
        raise CodecError("example: expected a mark that names its item; its writer is wrong")
    if flags & Mark.USERS:
        decode_json(header.user.encode(), _users)
    if bool(header.num_ids) != bool(flags & IDS):
        raise CodecError("example: expected ids and how many each interaction has, or neither; its writer is wrong")


def encode_example(example: Example) -> bytes:
    """The bytes of an example. O(size); arrays may be of any layout and are converted to their column's type."""
    rows, num, num_features = example.interactions, len(example.rows), num_features_of(example.rows)
    times, bits = rows.timestamp_ms, rows.action_bits
    base_ms = int(times[0]) if num else 0
    long_times = bool(num) and not (int(times.min()) - base_ms >= 0 and int(times.max()) - base_ms < 1 << 32)
    width = bits_width(int(bits.max(initial=0)))
    flags = (FENCE if example.is_fence else 0) | (example.mark or 0)
    columns = [_bytes_of(rows.item_hash, np.int64)]
    if long_times:
        flags, base_ms = flags | LONG_TIMES, 0
        columns.append(_bytes_of(times, np.int64))
    else:
        columns.append(_bytes_of(times - base_ms, np.uint32))
    columns.append(_bytes_of(bits, _UINTS[width]))
    if rows.domain_hash.any():
        flags |= DOMAINS
        columns.append(_bytes_of(rows.domain_hash, np.int64))
    if not np.isnan(rows.value).all():
        flags |= VALUES
        columns.append(_bytes_of(rows.value, np.float32))
    if num_features and rows.feature_hash.any():
        flags |= FEATURES
        columns.append(_bytes_of(rows.feature_hash, np.int64))
    if example.session_hash.any():
        flags |= SESSIONS
        columns.append(_bytes_of(example.session_hash, np.int64))
    if len(example.action_ids):
        flags |= IDS
        columns.append(_bytes_of(example.id_counts, np.uint8))
    columns += [
        _bytes_of(example.action_ids, np.int64),
        _bytes_of(example.user_feature_hash, np.int64),
        _bytes_of(example.feedback_index, _UINTS[index_width(example.segment_len)]),
        _bytes_of(example.feedback_bits, np.uint32),
    ]
    header = Header(
        example.partition, example.writer_epoch, example.segment_len, num_features, len(example.user_feature_hash),
        example.applied_offset, example.resume_from_offset, example.counted_offset, example.counts,
        example.newest_event_ms, example.newest_record_ms, base_ms, example.user_offset, example.user_index,
        example.number, example.segment, example.first, num, example.num_new, example.num_feedback,
        len(example.action_ids), flags, width, example.user, example.names,
    )  # fmt: skip
    joined = b"".join(columns)
    _check_sizes(header, len(joined))
    _check_ids(example.id_counts, len(example.action_ids))
    return pack(header, joined)


def decode_example(value: bytes) -> Example:
    """The example in these bytes; its arrays are new or read-only views of them. Raises `CodecError`, nothing else."""
    header, start = unpack(value)
    return view(header, value, start)


def view(header: Header, value: bytes, start: int = 0) -> Example:
    """The example of an unpacked header whose columns begin at ``value[start:]``."""
    num, num_features, flags = header.num_interactions, header.num_features, header.flags
    layout = _layout(num, num_features, flags, header.bits_width)
    given: NDArray[np.void] = np.ndarray((), layout, value, start)
    absent = _absent(num, num_features)

    def column(flag: int, name: str) -> NDArray[Any]:
        return (given if flags & flag else absent)[name]

    def take(dtype: type[Number], num: int) -> NDArray[Number]:
        nonlocal start
        found = np.frombuffer(value, dtype, num, start) if num else np.empty(0, dtype)
        start += found.nbytes
        return found

    start += layout.itemsize
    id_counts = given["id_counts"] if flags & IDS else np.empty(0, np.uint8)
    _check_ids(id_counts, header.num_ids)
    rows = rows_of(Interactions(
        given["item"], given["bits"], given["time"] + np.int64(header.base_ms),
        column(DOMAINS, "domain"), column(VALUES, "value"), column(FEATURES, "features"),
    ))  # fmt: skip
    ids, user_features = take(np.int64, header.num_ids), take(np.int64, header.num_user_features)
    index = take(_UINTS[index_width(header.segment_len)], header.num_feedback).astype(np.int64)
    feedback = take(np.uint32, header.num_feedback)
    if header.num_feedback and int(index.max()) >= num - header.num_new:
        raise CodecError("example: expected feedback to interactions that are not new; its writer is wrong")
    return Example(
        header.user, header.partition, header.writer_epoch, header.number, header.segment, header.segment_len, rows,
        header.num_new, index, feedback, user_features, header.resume_from_offset, header.newest_record_ms,
        column(SESSIONS, "session"), ids, header.user_offset, header.user_index, header.applied_offset,
        header.newest_event_ms, first=header.first, names=header.names, is_fence=bool(flags & FENCE),
        mark=Mark(flags & MARKS) if flags & MARKS else None, counted_offset=header.counted_offset,
        counts=header.counts, id_counts=id_counts,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _layout(num: int, num_features: int, flags: int, bits_width: int) -> np.dtype[np.void]:
    """The columns of a record's interactions."""
    columns: list[tuple[str, Any, tuple[int, ...], int]] = [
        ("item", np.int64, (num,), ALWAYS),
        ("time", np.int64 if flags & LONG_TIMES else np.uint32, (num,), ALWAYS),
        ("bits", _UINTS[bits_width], (num,), ALWAYS),
        ("domain", np.int64, (num,), DOMAINS),
        ("value", np.float32, (num,), VALUES),
        ("features", np.int64, (num, num_features), FEATURES),
        ("session", np.int64, (num,), SESSIONS),
        ("id_counts", np.uint8, (num,), IDS),
    ]
    return np.dtype([each[:3] for each in columns if each[3] & (flags | ALWAYS)])


@lru_cache(maxsize=4096)
def _absent(num: int, num_features: int) -> NDArray[np.void]:
    """What columns that a record does not have stand for; read-only, since many examples share it."""
    columns = np.zeros((), _layout(num, num_features, DOMAINS | VALUES | FEATURES | SESSIONS, 1))
    columns["value"] = np.nan
    columns.flags.writeable = False
    return columns


def _check_ids(id_counts: NDArray[np.uint8], num_ids: int) -> None:
    if (counted := sum(id_counts.tolist())) != num_ids and (len(id_counts) or num_ids):
        raise CodecError(f"example: expected {num_ids} ids, got {counted} by interaction; its writer is wrong")


def restamp(value: bytes, writer_epoch: int) -> bytes:
    """The same example under another writer epoch: entries waiting in an outbox are sent under the current owner's."""
    header, start = unpack(value)
    if header.writer_epoch == writer_epoch:
        return value
    header.writer_epoch = writer_epoch
    return pack(header, value[start:])


def bits_width(most: int) -> int:
    """Bytes per interaction of the action bits, of which ``most`` is the largest."""
    return 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4


def index_width(segment_len: int) -> int:
    """Bytes of a place in a segment."""
    return 1 if segment_len <= 256 else 2


def _bytes_of(column: Int64 | NDArray[np.generic], dtype: type[np.generic]) -> bytes:
    return np.ascontiguousarray(column).astype(dtype, copy=False).tobytes()
