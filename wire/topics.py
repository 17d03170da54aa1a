"""The topics: names, keys and settings as data. Nothing here talks to a broker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wire.config import KafkaConfig
from wire.example import MARK_ITEM, MARK_USER, NUM_OPEN, PIECE, Address

FENCE_KEY = b"\x00fence"
"""Start of every fence's key. No user's key starts with a NUL (`schema/action.schema.json`)."""
FORGOTTEN_KEY, ITEM_KEY = b"\x00forgotten", b"\x00item/"
"""Keys of marks (`wire.example.Mark`): of the last one that forgets a user; and, followed by an item's hash, of the
last one about that item."""
LAG_KEY = b"lag"
POLICY = "cleanup.policy"
BROKERS_TIME = {"message.timestamp.type": "LogAppendTime"}
"""Records have the time at which the broker received them, not that of their writers' clocks. So retention and
compaction remove nothing because a clock was years behind, nothing is refused because one is an hour ahead, and "the
future" is what lies ahead of the broker's clock."""
REPORTS_SEGMENT_MS = 3_600_000
LETTER_BYTES = 64 << 10
"""Space in a dead letter for what it says about its record: key and headers take less than 2 kB."""


def example_key(address: Address, num_slots: int) -> bytes:
    """The key of an example: the topic keeps a whole segment's newest record until segment ``segment + num_slots``
    takes its place, a piece's until one of a later segment does (``num_slots``: `wire.config.SequenceConfig`).
    """
    user, segment, first = address
    if segment == PIECE:
        return b"%b\x00.%d" % (user.encode(), first)
    if segment == MARK_USER:
        return FORGOTTEN_KEY
    if segment == MARK_ITEM:
        return b"%b%d" % (ITEM_KEY, first)
    return b"%b\x00%d" % (user.encode(), segment % num_slots)


def address_of_key(key: bytes) -> Address | None:
    """What a key of the sequences topic stands for, with segments by slot; None for fences and foreign keys."""
    user, _, place = key.rpartition(b"\x00")
    try:
        if key == FORGOTTEN_KEY:
            return Address("", MARK_USER, 0)
        if key.startswith(ITEM_KEY):
            return Address("", MARK_ITEM, _int64(key[len(ITEM_KEY) :]))
        if not user or not place.removeprefix(b".").isdigit():
            return None
        if place.startswith(b"."):
            return Address(user.decode(), PIECE, _int64(place[1:]))
        return Address(user.decode(), _int64(place), 0)
    except ValueError:
        return None


def _int64(text: bytes) -> int:
    """Raises ValueError."""
    if not -(1 << 63) <= (number := int(text)) < 1 << 63:
        raise ValueError
    return number


def keys_of_user(user: str, num_slots: int, segment_len: int, num_interactions: int = 1 << 60) -> list[bytes]:
    """Every key that examples of a user may have. ``num_interactions``: of the user's lifetime, if others can have left
    nothing under this name."""
    num_places = min(num_interactions, NUM_OPEN * segment_len)
    num_segments = min(num_interactions // segment_len, num_slots)
    places = [Address(user, PIECE, place) for place in range(num_places)]
    return [example_key(each, num_slots) for each in (*places, *(Address(user, n, 0) for n in range(num_segments)))]


def fence_key(writer_epoch: int) -> bytes:
    """One key per epoch, so that compaction never drops a fence that still separates older records."""
    return b"%b/%d" % (FENCE_KEY, writer_epoch)


@dataclass(frozen=True)
class Topic:
    """A topic as it should be. ``settings`` use Kafka's own names."""

    name: str
    num_partitions: int
    replication_factor: int
    settings: Mapping[str, str]
    other_policy: str = ""
    """What another ``cleanup.policy`` would remove although it is needed; empty if it would remove nothing needed."""


@dataclass(frozen=True)
class Topics:
    """The topics' names, all under one prefix."""

    actions: str
    dead_letters: str
    sequences: str
    weights: str
    lag: str
    status: str
    control: str

    @classmethod
    def under(cls, prefix: str = "headrace", line: str = "") -> Topics:
        """The names of one deployment; ``prefix`` is ``headrace`` unless several deployments share a broker. ``line``:
        a line of training beside the main one, with weights and a lag of its own (`KafkaConfig.line`)."""
        own = f".{line}" if line else ""
        return cls(
            actions=f"{prefix}.actions.v1",
            dead_letters=f"{prefix}.actions.v1.dlq",
            sequences=f"{prefix}.sequences.v1",
            weights=f"{prefix}.weights.v1{own}",
            lag=f"{prefix}.trainer.lag.v1{own}",
            status=f"{prefix}.status.v1",
            control=f"{prefix}.control.v1",
        )


def what_creates(topic: str) -> str:
    """What to do about a topic that is missing, for a message."""
    line = re.search(r"\.(?:weights|trainer\.lag)\.v1\.(.+)$", topic)
    if line is None:
        return "start a worker, or: headrace topics --create"
    return f"correct the line of training, or start its trainer, which creates it (kafka.line = {line[1]!r})"


def max_letter_bytes(config: KafkaConfig) -> int:
    """The size limit of a dead letter: the largest record of the actions topic, plus what is said about it."""
    return config.max_message_bytes + LETTER_BYTES


def topics_of(config: KafkaConfig) -> tuple[Topic, ...]:
    """Every topic of a deployment, with its settings; actions come first."""
    names = Topics.under(config.prefix, config.line)
    retention = {POLICY: "delete", "retention.ms": str(round(config.actions_retention_s * 1000))}
    largest, letter = config.max_message_bytes, max_letter_bytes(config)
    forever = {POLICY: "delete", "retention.ms": "-1", "max.message.bytes": str(letter)}
    # A trainer may fall this far behind before compaction can remove an example that it has not read.
    compacted = {
        POLICY: "compact",
        "min.compaction.lag.ms": str(round(config.min_compaction_lag_s * 1000)),
    }
    # Kafka compacts closed segments alone, and closes one after a week by default: a week of reports, one a second of
    # each process, would be read at every start.
    at_once = {POLICY: "compact", "min.compaction.lag.ms": "0", "segment.ms": str(REPORTS_SEGMENT_MS)}
    copies = config.replication_factor
    topics = (
        Topic(names.actions, config.partitions, copies, {**retention, "max.message.bytes": str(largest)},
              "compaction keeps only the last action of each user, whether a worker has read the others or not"),
        Topic(names.dead_letters, 1, copies, forever, "compaction keeps only one refused action of a list"),
        Topic(names.sequences, config.partitions, copies, compacted,
              "retention removes the segments from which a worker's disk is restored"),
        Topic(names.weights, 1, copies, {**retention, "retention.ms": str(round(config.weights_kept_s * 1000))},
              "compaction keeps only the last chunk of each version"),
        Topic(names.lag, 1, copies, retention),
        Topic(names.status, 1, copies, at_once),
        Topic(names.control, 1, copies, at_once, "retention removes the version that is pinned and the line to follow"),
    )  # fmt: skip
    return tuple(replace(topic, settings={**topic.settings, **BROKERS_TIME}) for topic in topics)
