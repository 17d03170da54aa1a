"""What workers, servers and trainers report once a second in ``headrace.status.v1`` (JSON)."""

from __future__ import annotations

import msgspec

from wire.errors import CodecError
from wire.json_value import Epoch, Whole, decode_json


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one partition of a worker. Offsets are those of the actions topic; -1 if there is none yet."""

    applied_offset: Whole = -1
    applied_record_ms: Whole = -1
    outbox_len: Whole = 0
    oldest_outbox_record_ms: Whole = -1
    """`newest_record_ms` of the oldest example waiting in the outbox; -1 if it is empty."""
    relayed_number: Whole = -1
    """The highest example number that the broker has acknowledged."""
    writer_epoch: Epoch = 0
    num_accepted: Whole = 0
    num_duplicate: Whole = 0
    num_dead: Whole = 0
    num_late: Whole = 0
    num_gone: Whole = 0
    """Offsets of the actions topic that retention removed before the worker read them, since it took the partition."""
    dead: dict[str, Whole] = {}
    """Reason → dead letters, since the worker's store was created; after a disk was wiped, fewer than ``num_dead``."""


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True, tag="worker", tag_field="role"):
    """A stream worker. ``component`` is its name; ``time_ms`` is its wall clock."""

    component: str
    time_ms: Whole
    partitions: dict[int, PartitionStatus] = {}
    disk: str = ""
    """The name of its disk, the same for every process that uses it, and for those on a copy of it."""
    process: str = ""
    """Another one for each process; empty in a build that does not say it."""
    num_partitions: Whole = 0
    """How many the actions topic has, as this worker is configured; 0 in a build that does not say it."""


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True, tag="server", tag_field="role"):
    """A server: the version it answers with, and how fresh that is."""

    component: str
    time_ms: Whole
    epoch: Epoch = -1
    number: Whole = -1
    newest_record_ms: Whole = -1
    swapped_ms: Whole = -1
    num_requests: Whole = 0
    pinned: list[Whole] = []
    """[epoch, number] that it is pinned to; empty if it follows the newest good one."""
    held: list[Whole] = []
    """[epoch, number] of the newest version if that is held back, or of the pinned one if that is not available."""
    why: str = ""
    line: str = ""
    """The line of training that it follows; empty: the main one."""
    open_files: Whole = 0
    most_files: Whole = 0
    """How many files and sockets it has open, and how many it may; 0 if its system does not say."""
    partitions: str = ""
    """The partitions whose users it answers (`wire.holding`); ``none`` while it cannot answer yet; empty: all of them,
    by a build that did not say so."""
    num_partitions: Whole = 0
    """Of how many; 0 if it does not know yet."""
    address: str = ""
    """The base URL under which other servers reach it; empty: they do not."""
    recall: float | None = None
    """The share of the exact answers' items that its search by lists finds, lately; None if it answers exactly."""
    is_recall_low: bool = False
    """Whether that is less than its ``serving.search_recall`` asks for, over enough comparisons to say so."""


class TrainerStatus(msgspec.Struct, frozen=True, kw_only=True, tag="trainer", tag_field="role"):
    """A trainer's heartbeat. ``claimant``: as its claim in the weights topic names it. A standby has no epoch (-1)."""

    component: str
    time_ms: Whole
    claimant: str
    epoch: Epoch = -1
    is_standby: bool = False
    num_steps: Whole = 0


Status = WorkerStatus | ServerStatus | TrainerStatus
_decoder: msgspec.json.Decoder[Status] = msgspec.json.Decoder(Status)


def role_of(status: Status) -> str:
    """``worker``, ``server`` or ``trainer``."""
    return str(status.__struct_config__.tag)


def keys_of(role: str, component: str) -> tuple[bytes, bytes]:
    """The key of a process's reports, and the one that earlier builds gave them, which processes of one name but of
    several roles shared. Readers take both: what counts is the last report."""
    return f"{role}/{component}".encode(), component.encode()


def key_of(status: Status) -> bytes:
    """The key of a report."""
    return keys_of(role_of(status), status.component)[0]


def encode_status(status: Status) -> bytes:
    """Status → JSON."""
    return msgspec.json.encode(status)


def decode_status(value: bytes | None) -> Status:
    """Raises `wire.errors.CodecError` for anything that is not a status."""
    return decode_json(value, _decoder)


def status_of(value: bytes | None) -> Status | None:
    """A status, or None for anything that is not one."""
    try:
        return decode_status(value)
    except CodecError:
        return None
