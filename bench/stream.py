"""How many actions a second one worker turns into examples, from a backlog on a local broker.

Once with 500 actions in a record, once with one: the difference is what Faust costs a record. The whole worker runs
(Faust, store, relay), in this process; the broker shares the machine.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import msgspec

from headrace.logs import configure_logs
from state.config import StoreConfig
from state.store import PartitionStore
from stream.config import StreamConfig
from stream.producer import BatchConfig
from stream.replay import send_actions
from stream.simulate import KINDS, World, WorldConfig
from stream.worker import Worker
from tests.brokers import start_broker
from wire.config import ActionConfig, KafkaConfig, SequenceConfig
from wire.kafka.admin import ensure_topics

NUM_PARTITIONS = 4


@contextmanager
def _deployment(bootstrap: str, folder: Path) -> Iterator[Any]:
    prefix = f"bench{uuid.uuid4().hex[:8]}"
    yield SimpleNamespace(
        action=ActionConfig(kinds=KINDS, features=("taste",)),
        sequence=SequenceConfig(join_window_s=60.0),
        store=StoreConfig(path=folder / prefix),
        kafka=KafkaConfig(bootstrap=bootstrap, prefix=prefix, partitions=NUM_PARTITIONS),
        stream=StreamConfig(metrics_port=0),
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
        is_applied = sum(status.applied_offset + 1 for status in statuses) >= num_records
        if is_applied and all(status.outbox_len == 0 for status in statuses):
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
        report = send_actions(actions, settings.kafka, batch=batch)
        taken_s = asyncio.run(drain(settings, report.num_records))
    return num_actions / report.elapsed_s, num_actions / taken_s


def store_alone(folder: Path, num_actions: int, per_record: int) -> float:
    """Actions/s of the sequences' database alone: the same records, no Kafka, no Faust."""
    action, sequence = ActionConfig(kinds=KINDS, features=("taste",)), SequenceConfig(join_window_s=60.0)
    actions = [msgspec.json.encode(one) for one in islice(World(WorldConfig(num_users=2_000)).actions(), num_actions)]
    values = [b"[" + b",".join(actions[at : at + per_record]) + b"]" for at in range(0, num_actions, per_record)]
    records = [(offset, 1_800_000_000_000, b"", value) for offset, value in enumerate(values)]
    store = PartitionStore.open(folder / uuid.uuid4().hex, 0, action, sequence)
    began_s = time.perf_counter()
    per_batch = max(1, 2_000 // per_record)
    for at in range(0, len(records), per_batch):
        store.apply(records[at : at + per_batch])
    taken_s = time.perf_counter() - began_s
    store.close()
    return num_actions / taken_s


def run(quick: bool = False) -> list[dict[str, Any]]:
    """The rows of the report: medians of interleaved repeats."""
    configure_logs(logging.ERROR)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = start_broker(folder / "kafka")
        try:
            for _ in range(1 if quick else 3):
                for label, per_record, num_actions in (("500 a record", 500, 200_000), ("1 a record", 1, 40_000)):
                    num_actions //= 4 if quick else 1
                    produced, worked = measure(broker.bootstrap, folder, num_actions, per_record)
                    found.setdefault(f"producer, {label}", []).append(produced)
                    found.setdefault(f"worker, {label}", []).append(worked)
                    found.setdefault(f"store alone, {label}", []).append(store_alone(folder, num_actions, per_record))
        finally:
            broker.stop()
    return [row(name, median(values)) for name, values in found.items()]


def row(name: str, value: float) -> dict[str, Any]:
    """One line of the report; the stream has no target of its own."""
    return {"name": name, "value": round(value), "unit": "actions/s", "target": None, "met": None}
