"""How many actions a second one worker turns into examples, from a backlog on a local broker.

``batch`` puts 500 actions into a record, ``single`` one: the difference is what Faust and the store's write batch cost a
record. The whole worker runs (Faust, store, relay), in this process; the broker shares the machine.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from state.config import ActionConfig, KafkaConfig, SequenceConfig, StoreConfig
from state.topics import Topics
from stream.config import StreamConfig
from stream.producer import BatchConfig
from stream.replay import send_actions
from stream.simulate import KINDS, World, WorldConfig
from stream.topics import ensure_topics
from stream.worker import Worker
from tests.brokers import broker_in_use, start_broker

NUM_PARTITIONS = 4


@contextmanager
def _deployment(bootstrap: str, folder: Path) -> Iterator[Any]:
    prefix = f"bench{uuid.uuid4().hex[:8]}"
    yield SimpleNamespace(
        action=ActionConfig(kinds=KINDS, features=("taste",)),
        sequence=SequenceConfig(join_window_s=60.0),
        store=StoreConfig(path=folder / prefix),
        kafka=KafkaConfig(bootstrap=bootstrap, prefix=prefix, partitions=NUM_PARTITIONS),
        stream=StreamConfig(metrics_port=0, idle_tick_s=0.0),
    )


async def drain(settings: Any, num_records: int) -> float:
    """Run a worker until it has applied and relayed everything; seconds from its first claim on."""
    worker = Worker(settings)
    running = asyncio.create_task(worker.run())
    began_s: float | None = None
    while not running.done():
        statuses = [partition.status() for partition in worker.partitions.values()]
        if began_s is None and any(status.writer_epoch > 0 for status in statuses):
            began_s = time.perf_counter()
        if sum(status.applied_offset + 1 for status in statuses) >= num_records:
            if all(status.outbox_len == 0 for status in statuses):
                break
        await asyncio.sleep(0.01)
    ended_s = time.perf_counter()
    worker.stop()
    await running
    assert began_s is not None
    return ended_s - began_s


def measure(bootstrap: str, folder: Path, num_actions: int, per_record: int) -> tuple[float, float]:
    """(actions/s handed over by the producer, actions/s applied and relayed by the worker)."""
    with _deployment(bootstrap, folder) as settings:
        ensure_topics(settings.kafka)
        actions = list(islice(World(WorldConfig(num_users=2_000)).actions(), num_actions))
        batch = BatchConfig(max_actions=per_record)
        report = send_actions(actions, settings.kafka, settings.sequence, batch=batch)
        taken_s = asyncio.run(drain(settings, report.num_records + NUM_PARTITIONS))
    return num_actions / report.elapsed_s, num_actions / taken_s


def run(quick: bool = False) -> list[dict[str, Any]]:
    """The rows of the report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = start_broker(folder / "kafka")
        try:
            rows: list[dict[str, Any]] = []
            for label, per_record, num_actions in (("batch of 500", 500, 200_000), ("single", 1, 40_000)):
                num_actions //= 4 if quick else 1
                produced, worked = measure(broker.bootstrap, folder, num_actions, per_record)
                rows.append(row(f"producer, {label}", produced))
                rows.append(row(f"worker, {label}", worked))
            return rows
        finally:
            broker.stop()


def row(name: str, value: float) -> dict[str, Any]:
    """One line of the report; no target is set for the stream."""
    return {"name": name, "value": round(value), "unit": "actions/s", "target": None, "met": None}


if __name__ == "__main__":
    print(broker_in_use())
    for line in run(quick=True):
        print(line)
