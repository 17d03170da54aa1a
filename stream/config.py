"""How a worker takes records and when it gives up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from state.config import StoreConfig
from wire.config import ActionConfig, KafkaConfig, SequenceConfig

MAX_S = 2_000_000


@dataclass(frozen=True)
class StreamConfig:
    """The worker's own settings; what an action is and where state lives are `wire.config`'s."""

    group: str = ""
    """Consumer group; empty means ``<kafka.prefix>-stream``."""
    component: str = ""
    """This worker's name in the status topic; empty means ``worker-<host>-<pid>``. A name given here also makes it a
    static member of the group: started again under it, it has its partitions back at once, not after a session."""
    max_batch: int = 500
    """Most records in one write batch."""
    max_wait_s: float = 0.02
    """Longest wait for a batch to fill."""
    max_outbox: int = 20_000
    """Unsent examples of a partition above which it takes no more actions until the broker has caught up."""
    commit_interval_s: float = 1.0
    session_timeout_s: float = 10.0
    """A worker not heard of for this long loses its partitions."""
    heartbeat_s: float = 2.0
    rebalance_timeout_s: float = 10.0
    start_timeout_s: float = 30.0
    """A broker that does not answer for this long at start ends the worker."""
    recover_timeout_s: float = 600.0
    """A broker that goes away later is waited for this long."""
    stop_timeout_s: float = 15.0
    """An orderly stop that takes longer is cut short (nothing is lost by it)."""
    metrics_host: str = "127.0.0.1"
    """Address that the metrics listen on; 0.0.0.0 where Prometheus is on another host or in another container."""
    metrics_port: int = 9101
    """Port of the Prometheus metrics; 0 switches them off."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_outbox"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}; keep the default if unsure")
        positive = ("max_wait_s", "commit_interval_s", "session_timeout_s", "heartbeat_s", "rebalance_timeout_s")
        for name in (*positive, "start_timeout_s", "recover_timeout_s", "stop_timeout_s"):
            if not 0 < getattr(self, name) <= MAX_S:
                raise ValueError(
                    f"{name}: expected seconds above 0, at most {MAX_S}, got {getattr(self, name)}; Kafka counts them "
                    "in milliseconds of 32 bits"
                )
        if self.heartbeat_s * 2 > self.session_timeout_s:
            raise ValueError(
                f"heartbeat_s: expected at most half of session_timeout_s ({self.session_timeout_s}), "
                f"got {self.heartbeat_s}; lower it"
            )
        if not 0 <= self.metrics_port < 65536:
            raise ValueError(f"metrics_port: expected 0 to 65535, got {self.metrics_port}; 0 switches metrics off")


class Settings(Protocol):
    """What this room needs of a process's configuration (`headrace.config.Settings` has it)."""

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
