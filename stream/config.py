"""How a worker takes records and when it gives up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from state.config import StoreConfig
from wire.checks import AT_LEAST_1, Limit, Number, Text, check_fields, expect
from wire.config import ActionConfig, KafkaConfig, SequenceConfig

MAX_S = 2_000_000


def _seconds(low: float, high: float) -> Number:
    return Number(0, MAX_S, open_low=True, advice="Kafka holds them as 32-bit milliseconds", usual=(low, high))


STREAM_LIMITS: dict[str, Limit] = {
    "group": Text(),
    "component": Text(),
    "max_batch": AT_LEAST_1,
    "max_wait_s": _seconds(0.0001, 2),
    "max_outbox": AT_LEAST_1,
    "commit_interval_s": _seconds(0.01, 120),
    "session_timeout_s": _seconds(0.5, 1_800),
    "heartbeat_s": _seconds(0.02, 600),
    "rebalance_timeout_s": _seconds(0.5, 1_800),
    "stop_timeout_s": _seconds(0.5, 1_800),
    "metrics_host": Text(r".+", "a host name or an address", "0.0.0.0 listens on every interface"),
    "metrics_port": Number(0, 65_535, whole=True, advice="0 turns metrics off"),
}


@dataclass(frozen=True)
class StreamConfig:
    """The worker's own settings; `wire.config` says what an action is, `state.config` where state lives."""

    group: str = ""
    """Consumer group; empty means ``<kafka.prefix>-stream``."""
    component: str = ""
    """This worker's name in the status topic; empty means ``worker-<host>-<pid>``. A name given here also makes it a
    static member of the group: restarted under that name, it gets its partitions back at once instead of after a
    session timeout."""
    max_batch: int = 500
    """Maximum records in one write batch."""
    max_wait_s: float = 0.02
    """Maximum wait for a batch to fill."""
    max_outbox: int = 20_000
    """With more unsent examples than this, a partition takes no further actions until the broker has caught up."""
    commit_interval_s: float = 1.0
    session_timeout_s: float = 10.0
    """A worker not heard from for this long loses its partitions."""
    heartbeat_s: float = 2.0
    rebalance_timeout_s: float = 10.0
    stop_timeout_s: float = 15.0
    """An orderly stop that takes longer is cut short (nothing is lost)."""
    metrics_host: str = "127.0.0.1"
    """Address to serve metrics on; 0.0.0.0 if Prometheus is on another host or in another container."""
    metrics_port: int = 9101
    """Port of the Prometheus metrics; 0 turns them off."""

    def __post_init__(self) -> None:
        check_fields(self, "stream", STREAM_LIMITS)
        expect(
            self.heartbeat_s * 2 <= self.session_timeout_s,
            "stream.heartbeat_s",
            f"at most half of session_timeout_s ({self.session_timeout_s:g})",
            self.heartbeat_s,
            "lower it",
        )


class Settings(Protocol):
    """The part of a process's configuration that this room needs (`headrace.config.Settings` has it)."""

    @property
    def action(self) -> ActionConfig:
        """What an action may be."""

    @property
    def sequence(self) -> SequenceConfig:
        """How actions become examples."""

    @property
    def store(self) -> StoreConfig:
        """Where state lives."""

    @property
    def kafka(self) -> KafkaConfig:
        """Which broker and topics."""

    @property
    def stream(self) -> StreamConfig:
        """This room's own."""
