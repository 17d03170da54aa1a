"""A partition's metadata: its position, and the configuration under which its bytes were written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from state.errors import StoreCorrupt, StoreMismatch
from wire.config import ActionConfig, SequenceConfig
from wire.example import ZERO_COUNTS, Counts

LAYOUT = 3


class Shape(msgspec.Struct, array_like=True):
    """The part of the configuration that the stored bytes depend on. Field order is the layout."""

    layout: int
    partition: int
    num_partitions: int
    """0 if unknown."""
    segment_len: int
    kinds: list[str]
    features: list[str]
    user_features: list[str]
    num_slots: int = 0
    extra_columns: list[str] = []

    @classmethod
    def of(cls, partition: int, num_partitions: int | None, action: ActionConfig, sequence: SequenceConfig) -> Shape:
        """The shape that this configuration yields."""
        return cls(
            LAYOUT, partition, num_partitions or 0, sequence.segment_len, list(action.kinds), list(action.features),
            list(action.user_features), sequence.num_slots, list(action.extra_columns),
        )  # fmt: skip

    def check(self, stored: Shape, path: Path) -> None:
        """Kinds may be added at the end; nothing else may change. Raises `StoreMismatch`."""
        for field in stored.__struct_fields__:
            was, now = getattr(stored, field), getattr(self, field)
            if was != now and not (field == "kinds" and now[: len(was)] == was):
                raise StoreMismatch(
                    f"{path}: expected {field} {was!r}, as when it was written, got {now!r}; "
                    "restore that configuration, or use another store.path and kafka.prefix"
                )


class Position(NamedTuple):
    """How far a partition has come."""

    applied_offset: int = -1
    """The highest action offset applied; -1 before any."""
    applied_record_ms: int = -1
    """Kafka timestamp of that record; -1 if it is not known, as after a restore."""
    newest_event_ms: int = -1
    counted_offset: int = -1
    """``counts`` are those of the actions up to here. After a restore, this is ahead of ``applied_offset``."""
    counts: Counts = ZERO_COUNTS
    next_number: int = 0
    writer_epoch: int = 0


class Meta(msgspec.Struct, array_like=True):
    """What the database holds under one key: `Position`, and the state of the outbox. Field order is the layout."""

    shape: Shape
    applied_offset: int = -1
    applied_record_ms: int = -1
    newest_event_ms: int = -1
    counted_offset: int = -1
    counts: Counts = ZERO_COUNTS
    next_number: int = 0
    writer_epoch: int = 0
    outbox_first: int = 0
    outbox_next: int = 0
    relayed_number: int = -1
    sequences_offset: int = 0
    dead: dict[str, int] = {}
    """Reason → dead letters, since the database was created."""
    read_to: int = 0
    """Action offset below which nothing is left to read: markers of transactions may follow the last action."""

    @property
    def position(self) -> Position:
        """The fields of the position."""
        return Position(*(getattr(self, name) for name in Position._fields))


_decoder = msgspec.msgpack.Decoder(Meta)


def encode_meta(meta: Meta) -> bytes:
    """MessagePack."""
    return msgspec.msgpack.encode(meta)


def decode_meta(stored: bytes, path: Path) -> Meta:
    """Raises `StoreCorrupt`."""
    try:
        return _decoder.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise corrupt(path, "its metadata", str(error)) from error


def corrupt(path: Path, what: str, got: str) -> StoreCorrupt:
    """The error for bytes that RocksDB considers intact but that are not."""
    advice = "remove the folder: it will be restored from Kafka"
    return StoreCorrupt(f"{path}: expected intact state, but {what} is damaged ({got}); {advice}")
