"""The state of the running demo: threads update it, the screen reads it."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from kafka.errors import KafkaError

from headrace.config import Settings
from wire.cluster import ClusterState
from wire.errors import BrokerUnavailable, TopicMissing
from wire.kafka.consumer import follow, reconnect
from wire.lag import decode_lag, measure
from wire.topics import Topics

IDLE_AFTER_S = 3.0
STAGES = ("ingest", "sequence", "train", "publish", "serve")


@dataclass(slots=True)
class LagView:
    """One run's numbers. ``lag`` is the newest message of the lag topic, ``served`` the server's ``GET /version``."""

    dataset: str = ""
    broker: str = ""
    line: str = ""
    """The line of training that is shown; empty: the main one."""
    page: str = ""
    """Where the server's page is."""
    num_actions: int = 0
    num_sent: int = 0
    phase: str = "starting"
    publish_every_s: float = 0.0
    """``trainer.publish_every_s``."""
    lag: dict[str, Any] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)
    freshness_s: list[float] = field(default_factory=list)
    """The age of the newest action that the served weights have learned; sampled every second while sending."""
    cluster: ClusterState = field(default_factory=ClusterState)
    """The worker's last report."""
    started_s: float = field(default_factory=time.monotonic)
    sent_at: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=40))

    def note_sent(self, num: int) -> None:
        """Record how many actions have been sent by now."""
        self.num_sent = num
        self.sent_at.append((time.monotonic(), num))

    @property
    def rate(self) -> float:
        """Actions sent per second, recently; 0 from a few seconds after the last one."""
        now_s = time.monotonic()
        if len(self.sent_at) < 2 or now_s - self.sent_at[-1][0] > IDLE_AFTER_S:
            return 0.0
        (first_s, first), (_, last) = self.sent_at[0], self.sent_at[-1]
        return (last - first) / max(now_s - first_s, 1.0)  # what is sent at once, at the start, is no rate

    @property
    def elapsed_s(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self.started_s

    @property
    def freshness_p50_s(self) -> float | None:
        """The median of `freshness_s`."""
        return statistics.median(self.freshness_s) if self.freshness_s else None

    @property
    def num_trained(self) -> int:
        """Interactions that have been a target so far."""
        return int(self.lag.get("num_interactions") or 0)

    @property
    def num_applied(self) -> int:
        """Actions that the worker has accepted or refused so far."""
        return sum(each.num_accepted + each.num_duplicate + each.num_dead for each in self.cluster.workers.values())

    @property
    def is_drained(self) -> bool:
        """Whether everything sent has been applied, relayed, learned, published and served."""
        stages = [self.stage(name) for name in STAGES[:4]]
        if self.num_applied < self.num_sent or any(each.outbox_len for each in self.cluster.workers.values()):
            return False
        # The lag message has to be newer than the worker's report, or it describes an earlier state.
        if self.lag.get("time_ms", 0) < self.cluster.worker_ms:
            return False
        if any(stage.get("lag_records") != 0 for stage in stages):
            return False
        return int(self.served.get("num_interactions") or 0) >= self.num_trained > 0

    def stage(self, name: str) -> dict[str, Any]:
        """One stage of the newest lag message."""
        found = self.lag.get("stages", {}).get(name, {})
        return found if isinstance(found, dict) else {}

    @property
    def version(self) -> str:
        """The version being served (without a server: the newest published one), as displayed."""
        version = self.served.get("version") or self.lag.get("version")
        return f"{version['epoch']}/{version['number']}" if version else "–"

    @property
    def freshness_now_s(self) -> float | None:
        """The age of the newest action that the served weights have learned from."""
        served_s, reported_s = self.served.get("freshness_s"), self.lag.get("freshness", {}).get("now_s")
        newest_s = reported_s if served_s is None else served_s
        return None if newest_s is None else float(newest_s)

    def hr10(self, ranker: str = "model", *, window: bool = False) -> float | None:
        """Prequential HR@10 so far, or of the newest targets."""
        table = ("retrieval_window",) if window else ("retrieval", "all")
        return measure(self.lag, "metrics", *table, ranker, "hr10")

    def entropy(self, *, baseline: bool = False, window: bool = False) -> float | None:
        """Prequential normalised entropy of all kinds."""
        table = "ranking_window" if window else "ranking"
        return measure(self.lag, "metrics", table, "all", "ne_baseline" if baseline else "ne")


class Follower(threading.Thread):
    """Keeps the lag message and the worker's status in the view up to date; waits for a broker that is away."""

    def __init__(self, settings: Settings, view: LagView) -> None:
        super().__init__(name="follower", daemon=True)
        self._settings = settings
        self._view = view
        self._stopped = threading.Event()

    def run(self) -> None:
        """Follow until `stop`."""
        topics = Topics.under(self._settings.kafka.prefix, self._settings.kafka.line)
        while not self._stopped.is_set():
            try:
                consumer = reconnect(self._settings.kafka)
                try:
                    for record in follow(consumer, topics.lag, topics.status):
                        if self._stopped.is_set():
                            return
                        if record is not None and record.topic == topics.lag:
                            self._view.lag = decode_lag(record.value) or self._view.lag
                        elif record is not None:
                            self._view.cluster.hear(record.value, time.time_ns() // 1_000_000)
                finally:
                    consumer.close()
            except (BrokerUnavailable, TopicMissing, KafkaError):
                self._stopped.wait(0.5)

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        self.join(5)
