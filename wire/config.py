"""Configuration of actions, sequences and Kafka; each section is checked when it is constructed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from wire.checks import Limit, Names, Number, Switch, Text, Word, above_0, check_fields, expect, is_host_port
from wire.client_options import check_client
from wire.moment import MAX_TIMESTAMP_MS

COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
MAX_KINDS = 32
"""Action bits are a uint32."""
MAX_FEATURES = 1_000
MAX_IDS = 8
"""Action ids that are kept of an interaction; beyond that the oldest are forgotten."""
MAX_EXAMPLE_BYTES = 900_000
"""Below Kafka's default limit of 1 MB per record, with room for names and the header."""


class _Brokers:
    """The limit of ``kafka.bootstrap``."""

    def check(self, key: str, value: Any) -> None:
        """Raise `ConfigError` unless every one is host:port."""
        fine = isinstance(value, str) and all(is_host_port(each.strip()) for each in value.split(","))
        expect(fine, key, "host:port, or several with commas between", value, "Kafka's usual port is 9092")


class _ClientOptions:
    """The limit of ``kafka.client``."""

    def check(self, _key: str, value: Any) -> None:
        """Raise `ConfigError` for options that not every client can use."""
        check_client(value)


ACTION_LIMITS: dict[str, Limit] = {
    "kinds": Names(MAX_KINDS, "name the kinds that producers send"),
    "features": Names(MAX_FEATURES, "remove the superfluous ones", least=0),
    "user_features": Names(MAX_FEATURES, "remove the superfluous ones", least=0),
    "user_tokens": Switch(),
    "propensity": Switch(),
    "max_future_s": Number(0, advice="0 allows none"),
    "min_timestamp_ms": Number(
        0, MAX_TIMESTAMP_MS, whole=True, advice="631152000000 is 1990-01-01", usual=(1e11, math.inf)
    ),
    "max_record_bytes": Number(
        1, 1 << 30, whole=True, advice="use the topic's max.message.bytes", usual=(2_000, math.inf)
    ),
    "max_actions_per_record": Number(1, whole=True, advice="1 refuses longer lists"),
}
MAX_TOPIC = 249
"""The most characters that Kafka allows in a topic's name."""
LONGEST_TOPIC = ".trainer.lag.v1."
"""What stands between prefix and line in the longest name (`wire.topics`)."""
MAX_CONTEXT = 1_000_000
"""A request to forget a user sends a tombstone for each place that is kept."""
SEQUENCE_LIMITS: dict[str, Limit] = {
    "join_window_s": Number(0, advice="0 joins nothing"),
    "max_context": Number(1, MAX_CONTEXT, whole=True, advice="200 is usual"),
    "segment_len": Number(1, 4096, whole=True, advice="16 is usual"),
    "deduplicate": Switch(),
    "forget_after_days": Number(0, whole=True, advice="0 keeps every user", usual=(1, 3_650)),
}
KAFKA_LIMITS: dict[str, Limit] = {
    "bootstrap": _Brokers(),
    "client": _ClientOptions(),
    "prefix": Text(
        r"[A-Za-z0-9._-]{1,200}", "1 to 200 of A-Z, a-z, 0-9, '.', '_' or '-'", "choose what Kafka allows in a topic"
    ),
    "line": Text(r"(?!main$)[a-z0-9-]{0,40}", "up to 40 of a-z, 0-9 or '-'", "leave it empty for the main line"),
    "partitions": Number(1, 100_000, whole=True),
    "replication_factor": Number(1, 32_767, whole=True, advice="3 is usual on a cluster"),
    "compression": Word(COMPRESSIONS, "zstd is the default"),
    "actions_retention_s": above_0(3_600),
    "weights_retention_s": Number(0, advice="0 keeps versions as long as actions", usual=(3_600, math.inf)),
    "min_compaction_lag_s": above_0(600, 2.5e7),
    "max_message_bytes": Number(1 << 20, 1 << 30, whole=True, advice="1048588 is Kafka's default"),
}


@dataclass(frozen=True)
class ActionConfig:
    """What a well-formed action is. The order matters: kind b is bit b, feature f is column f."""

    kinds: tuple[str, ...] = ("impression", "click", "like")
    features: tuple[str, ...] = ()
    user_features: tuple[str, ...] = ()
    user_tokens: bool = False
    """Whether each interaction keeps its user's features as they were, so that every change of them becomes a token of
    its own (`model.tokens`)."""
    propensity: bool = False
    """Whether each interaction keeps the probability with which its user was shown the item."""
    max_future_s: float = 300.0
    min_timestamp_ms: int = 631_152_000_000
    """1990-01-01. Earlier times are refused: seconds read as milliseconds fall in 1970, devices whose clock was reset
    say 1970 or 1980, and no data set of actions is that old."""
    max_record_bytes: int = 1_000_000
    max_actions_per_record: int = 1_000

    def __post_init__(self) -> None:
        check_fields(self, "action", ACTION_LIMITS)

    @cached_property
    def max_future_ms(self) -> int:
        """``max_future_s`` in milliseconds."""
        return round(self.max_future_s * 1000)

    @property
    def num_columns(self) -> int:
        """How many columns of 64 bits each interaction has: item features, then the propensity, then user features."""
        return len(self.features) + self.propensity + len(self.user_features) * self.user_tokens

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """What these columns hold besides item features."""
        return ("propensity",) * self.propensity + ("user_features",) * self.user_tokens

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
    user's kept segments counts as a duplicate. ``forget_after_days``: whole days after a user's last action after which
    the worker forgets the user everywhere; 0: never.
    """

    join_window_s: float = 60.0
    max_context: int = 200
    segment_len: int = 16
    deduplicate: bool = True
    forget_after_days: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "sequence", SEQUENCE_LIMITS)

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
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    prefix: str = "headrace"
    line: str = ""
    """A line of training beside the main one: its trainer reads the same actions and sequences, and publishes to a
    weights topic of its own, until `headrace switch` has the servers answer from it."""
    partitions: int = 4
    replication_factor: int = 1
    compression: str = "zstd"
    """For everything that Headrace writes. Measured on batches of simulated actions, zstd needs half of lz4's bytes (a
    ninth of the original instead of almost a quarter) and compresses 0.7 GB/s on one core."""
    actions_retention_s: float = 7 * 86_400.0
    weights_retention_s: float = 0.0
    """How long versions of the weights are kept; 0: as long as actions. `trainer.keep_versions` bounds their number."""
    min_compaction_lag_s: float = 86_400.0
    max_message_bytes: int = 1_048_588
    """``max.message.bytes`` of the actions topic (here Kafka's own default); that of the dead letters follows from
    it."""

    def __post_init__(self) -> None:
        check_fields(self, "kafka", KAFKA_LIMITS)
        most = MAX_TOPIC - len(self.prefix) - len(LONGEST_TOPIC)
        expected = f"at most {most} characters behind this kafka.prefix, since a topic's name has at most {MAX_TOPIC}"
        expect(len(self.line) <= most, "kafka.line", expected, self.line, "choose a shorter one")

    @property
    def weights_kept_s(self) -> float:
        """How long the weights topic keeps a version."""
        return self.weights_retention_s or self.actions_retention_s


def largest_example_bytes(action: ActionConfig, sequence: SequenceConfig) -> int:
    """The most that an example's columns can take; names have a bound of their own (`MAX_NAMES_BYTES` of the codec)."""
    row_bytes = 49 + 8 * action.num_columns + 8 * MAX_IDS
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
