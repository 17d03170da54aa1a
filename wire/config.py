"""Configuration of actions, sequences and Kafka; each section is checked when it is constructed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from wire.checks import expect
from wire.client_options import check_client
from wire.moment import MAX_TIMESTAMP_MS

COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
MAX_KINDS = 32
"""Action bits are a uint32."""
MAX_IDS = 8
"""Action ids that are kept of an interaction; beyond that the oldest are forgotten."""
MAX_EXAMPLE_BYTES = 900_000
"""Below Kafka's default limit of 1 MB per record, with room for names and the header."""


def _expect_names(key: str, names: tuple[str, ...]) -> None:
    expect(all(names), key, "names that are not empty", names, "remove the empty one")
    expect(len(set(names)) == len(names), key, "names without repetition", names, "remove the second one")


def _is_address(text: str) -> bool:
    host, _, port = text.strip().rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536


@dataclass(frozen=True)
class ActionConfig:
    """What a well-formed action is. The order matters: kind b is bit b, feature f is column f."""

    kinds: tuple[str, ...] = ("impression", "click", "like")
    features: tuple[str, ...] = ()
    user_features: tuple[str, ...] = ()
    max_future_s: float = 300.0
    min_timestamp_ms: int = 631_152_000_000
    """1990-01-01. Earlier times are refused: seconds read as milliseconds fall in 1970, devices whose clock was reset
    say 1970 or 1980, and no data set of actions is that old."""
    max_record_bytes: int = 1_000_000
    max_actions_per_record: int = 1_000

    def __post_init__(self) -> None:
        expect(
            1 <= len(self.kinds) <= MAX_KINDS,
            "kinds", f"1 to {MAX_KINDS} action kinds", self.kinds, "name the kinds that producers send",
        )  # fmt: skip
        for key in ("kinds", "features", "user_features"):
            _expect_names(key, getattr(self, key))
        expect(self.max_future_s >= 0, "max_future_s", "seconds >= 0", self.max_future_s, "use 0 to allow none")
        expect(
            0 <= self.min_timestamp_ms <= MAX_TIMESTAMP_MS,
            "min_timestamp_ms", f"0 to {MAX_TIMESTAMP_MS}", self.min_timestamp_ms, "631152000000 is 1990-01-01",
        )  # fmt: skip
        expect(
            1 <= self.max_record_bytes <= 2**30,
            "max_record_bytes", "1 to 1073741824 bytes", self.max_record_bytes, "use the topic's max.message.bytes",
        )  # fmt: skip
        expect(
            self.max_actions_per_record >= 1,
            "max_actions_per_record", "at least 1", self.max_actions_per_record, "use 1 to refuse lists of more",
        )  # fmt: skip

    @cached_property
    def max_future_ms(self) -> int:
        """``max_future_s`` in milliseconds."""
        return round(self.max_future_s * 1000)

    @cached_property
    def bit_of(self) -> Mapping[str, int]:
        """Kind → its bit."""
        return {kind: 1 << bit for bit, kind in enumerate(self.kinds)}


@dataclass(frozen=True)
class SequenceConfig:
    """How a user's actions become interactions and examples.

    An action joins the user's newest interaction on the same item (in the same session, if it names one) that began
    at most ``join_window_s`` of event time before or after it; otherwise it begins a new interaction.
    ``max_context`` is how many interactions trainer and servers keep of a user; ``segment_len`` of them make a segment,
    the unit of records, of storage and of compaction. ``deduplicate``: an action whose ``id`` is among those of the
    user's kept segments counts as a duplicate.
    """

    join_window_s: float = 60.0
    max_context: int = 200
    segment_len: int = 16
    deduplicate: bool = True

    def __post_init__(self) -> None:
        expect(self.join_window_s >= 0, "join_window_s", "seconds >= 0", self.join_window_s, "use 0 to join nothing")
        for key in ("max_context", "segment_len"):
            expect(getattr(self, key) >= 1, key, "at least 1", getattr(self, key), "give a positive number")
        expect(self.segment_len <= 4096, "segment_len", "at most 4096", self.segment_len, "16 is usual")

    @property
    def join_window_ms(self) -> int:
        """``join_window_s`` in milliseconds."""
        return round(self.join_window_s * 1000)

    @property
    def num_slots(self) -> int:
        """How many segments are kept per user: enough for ``max_context`` interactions, however full the last one
        is."""
        return -(-self.max_context // self.segment_len) + 1


@dataclass(frozen=True)
class KafkaConfig:
    """The broker and the topics. ``client`` holds options of every Kafka client (`wire.client_options`)."""

    bootstrap: str = "localhost:9092"
    client: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = "headrace"
    partitions: int = 4
    replication_factor: int = 1
    compression: str = "zstd"
    """For everything that Headrace writes. Measured on batches of simulated actions, zstd needs half of lz4's bytes (a
    ninth of the original instead of almost a quarter) and compresses 0.7 GB/s on one core."""
    actions_retention_s: float = 7 * 86_400.0
    min_compaction_lag_s: float = 86_400.0
    max_message_bytes: int = 1_048_588
    """``max.message.bytes`` of the actions topic (here Kafka's own default); that of the dead letters follows from
    it."""

    def __post_init__(self) -> None:
        expect(
            all(_is_address(each) for each in self.bootstrap.split(",")),
            "bootstrap", "host:port, or several with commas between", self.bootstrap, "Kafka's usual port is 9092",
        )  # fmt: skip
        expect(
            re.fullmatch(r"[A-Za-z0-9._-]{1,200}", self.prefix) is not None,
            "prefix", "1 to 200 of A-Z, a-z, 0-9, '.', '_' or '-'", self.prefix, "choose what Kafka allows in a topic",
        )  # fmt: skip
        expect(
            self.compression in COMPRESSIONS,
            "compression", f"one of {', '.join(COMPRESSIONS)}", self.compression, "zstd is the default",
        )  # fmt: skip
        check_client(self.client)
        for key, most in (("partitions", 100_000), ("replication_factor", 32_767)):
            expect(1 <= getattr(self, key) <= most, key, f"1 to {most}", getattr(self, key), "what Kafka can hold")
        for key in ("actions_retention_s", "min_compaction_lag_s"):
            expect(getattr(self, key) > 0, key, "seconds > 0", getattr(self, key), "give a positive number")
        expect(
            1 << 20 <= self.max_message_bytes <= 1 << 30,
            "max_message_bytes", "1048576 to 1073741824 bytes", self.max_message_bytes, "1048588 is Kafka's default",
        )  # fmt: skip


def largest_example_bytes(action: ActionConfig, sequence: SequenceConfig) -> int:
    """The most that an example's columns can take; names have a bound of their own (`MAX_NAMES_BYTES` of the codec)."""
    row_bytes = 49 + 8 * len(action.features) + 8 * MAX_IDS
    return row_bytes * sequence.segment_len + 8 * len(action.user_features)


def check_sizes(action: ActionConfig, sequence: SequenceConfig) -> None:
    """Refuse a configuration under which an example could exceed a Kafka record. Raises `ConfigError`."""
    size = largest_example_bytes(action, sequence)
    expect(
        size <= MAX_EXAMPLE_BYTES * 2 // 3,
        "segment_len",
        f"a length that keeps the largest example under {MAX_EXAMPLE_BYTES * 2 // 3} bytes",
        size,
        "lower it, or the number of features",
    )
