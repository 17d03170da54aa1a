"""The Faust app: one agent over the raw records of the actions topic.

Faust delivers at least once, a list of records per event (`stream.transport`). The agent passes events to
`Router.take`, and a partition acknowledges one only after the write batches that hold its records. What Faust commits
is only a hint: after a rebalance it also acknowledges events that were never processed (a stream that meets an event of
an older generation skips *and* acknowledges it). So a partition compares every offset with its store's own, and reads
what is missing with a plain consumer (`stream.partition`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from faust.types import TP

from state.errors import StoreError
from stream.config import StreamConfig
from stream.transport import WorkerApp
from wire.config import KafkaConfig
from wire.kafka.options import ISOLATION, async_options
from wire.topics import Topics

METADATA_MS = 10_000
"""How often Faust's consumer asks for the topic's partitions. A broker that has just started may not know them when the
group's leader divides them; nobody would have any until the leader asks again, by default after five minutes."""
MOST_EVENTS = 8
"""How many events may wait in Faust."""


class Router(Protocol):
    """Receives events and assignments."""

    async def take(self, event: Any) -> None:
        """Take an event; it is acknowledged later, once its records are in a store."""

    async def assign(self, partitions: set[int]) -> None:
        """From now on, exactly these partitions are assigned to this worker."""

    def fail(self, error: BaseException) -> None:
        """The agent met an unexpected error."""


def group_of(kafka: KafkaConfig, stream: StreamConfig) -> str:
    """The consumer group of a deployment's workers."""
    return stream.group or f"{kafka.prefix}-stream"


def consumer_options(kafka: KafkaConfig, stream: StreamConfig) -> dict[str, Any]:
    """Arguments of Faust's consumer, by aiokafka's names; ``kafka.client`` overrides ours."""
    ours = {
        "group_id": group_of(kafka, stream),
        "group_instance_id": stream.component or None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "isolation_level": ISOLATION,
        "max_poll_records": stream.max_batch,
        "max_partition_fetch_bytes": 4 << 20,
        "fetch_max_wait_ms": 500,
        "max_poll_interval_ms": 1_000_000,
        "metadata_max_age_ms": METADATA_MS,
        "session_timeout_ms": round(stream.session_timeout_s * 1000),
        "heartbeat_interval_ms": round(stream.heartbeat_s * 1000),
        "rebalance_timeout_ms": round(stream.rebalance_timeout_s * 1000),
        "request_timeout_ms": round(max(40.0, stream.session_timeout_s) * 1000),
    }
    return {**ours, **async_options(kafka)}


def build_app(kafka: KafkaConfig, stream: StreamConfig, router: Router, datadir: Path) -> Any:
    """A Faust app of one agent, not started. After a crash, a new one is needed.

    ``datadir``: where Faust creates its folder, which stays empty; by default it would be in the current folder. Raises
    `StoreError` if it cannot be created.
    """
    try:
        datadir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"store.path: cannot create {datadir} ({error.strerror}); name a folder on a disk with room"
        ) from error
    app = WorkerApp(
        group_of(kafka, stream),
        consumer_options(kafka, stream),
        broker=[f"kafka://{server.strip()}" for server in kafka.bootstrap.split(",")],
        datadir=str(datadir).replace("{", "{{").replace("}", "}}"),  # Faust takes it for a format
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,  # the leader topic is for timers that run on one worker only
        topic_allow_declare=False,  # `wire.kafka.admin` creates topics
        stream_wait_empty=False,  # events of a lost partition are never acknowledged, and do not need to be
        stream_recovery_delay=0.0,
        stream_buffer_maxsize=MOST_EVENTS,
        broker_commit_interval=stream.commit_interval_s,
        broker_session_timeout=stream.session_timeout_s,
        broker_heartbeat_interval=stream.heartbeat_s,
        broker_rebalance_timeout=stream.rebalance_timeout_s,
        broker_request_timeout=max(40.0, stream.session_timeout_s),
        broker_max_poll_records=stream.max_batch,
    )
    name = Topics.under(kafka.prefix).actions
    raw = app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

    async def take(lists: Any) -> None:
        async for event in lists.noack().events():
            try:
                await router.take(event)
            except Exception as error:
                # Faust would restart the agent and skip this event.
                router.fail(error)
                raise

    async def on_assigned(_app: Any, assigned: Iterable[TP], **_more: Any) -> None:
        await router.assign({partition for topic, partition in assigned if topic == name})

    app.agent(raw, name=f"{name}.take")(take)
    app.on_partitions_assigned.connect(on_assigned)
    return app
