"""How fast a worker turns a backlog of actions on a local broker into examples, and how much space they take there.

Once with a hundred actions per record and once with one: the difference is what Faust costs per record. The whole
worker runs in this process (Faust, store, relay); the broker shares the machine, so processor time is what counts. For
comparison, a `faust.Table` that does less and a Faust agent that does nothing (`bench.peers.faust_table`), Quix Streams
and Bytewax (`bench.peers.stream`) read the same records.

The worker, Quix Streams and Bytewax are compared by what one more action costs: between a small and a large backlog of
users with as many actions each. So what starting, stopping and a last commit take counts for none of them.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import msgspec

from bench.peers import stream as stream_peers
from bench.peers.faust_table import processor_seconds
from bench.peers.stream import PEERS
from bench.timing import row
from headrace.logs import configure_logs
from state.config import StoreConfig
from state.store import PartitionStore
from stream.config import StreamConfig
from stream.producer import BatchConfig
from stream.sender import send_actions
from stream.simulate import KINDS, World, WorldConfig
from stream.worker import Worker
from tests.brokers import start_broker
from wire.config import ActionConfig, KafkaConfig, SequenceConfig
from wire.kafka.admin import ensure_topics

NUM_PARTITIONS = 4
SIZES = {"100 a record": (100, 100_000, 300_000), "1 a record": (1, 15_000, 60_000)}
"""Actions per record, and in the small and in the large backlog."""
ACTIONS_PER_USER = 30
"""On average, in both: the peers' cost per action depends on it."""
MAX_TABLE_ACTIONS = 5_000
"""Fewer for the table, which slows down as its lists grow."""


@contextmanager
def _deployment(bootstrap: str, folder: Path) -> Iterator[Any]:
    prefix = f"bench{uuid.uuid4().hex[:8]}"
    yield SimpleNamespace(
        action=ActionConfig(kinds=KINDS, features=("genre",)),
        sequence=SequenceConfig(join_window_s=60.0),
        store=StoreConfig(path=folder / prefix),
        kafka=KafkaConfig(bootstrap=bootstrap, prefix=prefix, partitions=NUM_PARTITIONS),
        stream=StreamConfig(metrics_port=0),
    )


async def drain(settings: Any, num_records: int) -> tuple[float, float, int]:
    """Run a worker until it has applied and relayed everything. Returns the processor seconds since it had all
    partitions, the share of the records that it read in that time, and the number of examples that it made."""
    worker = Worker(settings)
    running = asyncio.create_task(worker.run())
    began_s, before = 0.0, 0
    while not running.done():
        statuses = [partition.status() for partition in worker.partitions.values()]
        num_applied = sum(status.applied_offset + 1 for status in statuses)
        if not began_s and sum(status.writer_epoch > 0 for status in statuses) == NUM_PARTITIONS:
            began_s, before = time.process_time(), num_applied
        if num_applied >= num_records and all(status.outbox_len == 0 for status in statuses):
            break
        await asyncio.sleep(0.01)
    ended_s = time.process_time()
    num_examples = sum(status.relayed_number + 1 for status in statuses)
    worker.stop()
    await running
    return ended_s - began_s, 1 - before / num_records, num_examples


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a backlog of actions took. ``spent``: of the worker and of its peers, the actions that were taken in the
    processor seconds that were measured. ``rates``: what is not compared between two sizes."""

    spent: dict[str, tuple[float, float]]
    rates: dict[str, float]


def measure(bootstrap: str, folder: Path, num_actions: int, per_record: int) -> Backlog:
    """Rates per second of a backlog's producer (by the wall clock) and of Faust, and what worker and peers spend."""
    with _deployment(bootstrap, folder) as settings:
        ensure_topics(settings.kafka)
        actions = simulated(num_actions)
        report = send_actions(actions, settings.kafka, batch=BatchConfig(max_actions=per_record))
        taken_s, share, num_examples = asyncio.run(drain(settings, report.num_records))
        num_table = min(num_actions, MAX_TABLE_ACTIONS)
        table_s = processor_seconds(settings.kafka, num_table // per_record)
        alone_s = processor_seconds(settings.kafka, report.num_records, keeps=False)
        peers_s = {peer: stream_peers.processor_seconds(peer, settings.kafka, num_actions) for peer in PEERS}
    rates = {
        "producer": num_actions / report.elapsed_s, "faust.Table": num_table / table_s,
        "Faust alone": num_actions / alone_s, "examples": num_examples / num_actions,
    }  # fmt: skip
    spent = {peer: (float(num_actions), taken) for peer, taken in peers_s.items() if taken is not None}
    return Backlog({"worker": (share * num_actions, taken_s)} | spent, rates)


def simulated(num_actions: int) -> list[dict[str, Any]]:
    """Actions of so many users that each has `ACTIONS_PER_USER` on average."""
    return list(islice(World(WorldConfig(num_users=max(1, num_actions // ACTIONS_PER_USER))).actions(), num_actions))


def marginal(small: tuple[float, float], large: tuple[float, float]) -> float:
    """Actions per processor second beyond the small backlog. Raises RuntimeError if the large one took no longer."""
    actions, seconds = large[0] - small[0], large[1] - small[1]
    if actions <= 0 or seconds <= 0:
        raise RuntimeError(
            f"expected {large[0]:,.0f} actions to take longer than {small[0]:,.0f}, got {large[1]:.3f} and "
            f"{small[1]:.3f} s of processor time; run it again on a quieter machine"
        )
    return actions / seconds


def store_alone(folder: Path, num_actions: int, per_record: int) -> float:
    """Actions per processor second of one store: apply, write, read the outbox, delete; without Kafka and Faust."""
    action = ActionConfig(kinds=KINDS, features=("genre",))
    actions = [msgspec.json.encode(one) for one in simulated(num_actions)]
    values = [b"[" + b",".join(actions[at : at + per_record]) + b"]" for at in range(0, num_actions, per_record)]
    records = [(offset, 1_800_000_000_000, b"", value) for offset, value in enumerate(values)]
    store = PartitionStore.open(folder / uuid.uuid4().hex, 0, action, SequenceConfig())
    began_s = time.process_time()
    per_batch = 500 if per_record == 1 else 2_000 // per_record
    for at in range(0, len(records), per_batch):
        store.apply(records[at : at + per_batch])
        while entries := store.outbox():
            store.ack(entries[-1].index)
    taken_s = time.process_time() - began_s
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
                for label, (per_record, *sizes) in SIZES.items():
                    small, large = (measure(broker.bootstrap, folder, size, per_record) for size in sizes)
                    rates = {who: marginal(small.spent[who], spent) for who, spent in large.spent.items()}
                    rates |= large.rates | {"store alone": store_alone(folder, sizes[-1], per_record)}
                    for what, value in rates.items():
                        found.setdefault(f"{what}, {label}", []).append(value)
        finally:
            broker.stop()
    return rows_of({name: median(values) for name, values in found.items()})


TARGETS = {"worker, 1 a record": 6_000, "worker, 100 a record": 100_000, "store alone, 1 a record": 12_000}
"""Actions per processor second."""
MIN_RATIO = {"faust.Table": 20.0, **dict.fromkeys(PEERS, 5.0)}


def rows_of(found: dict[str, float]) -> list[dict[str, Any]]:
    """The report: rates, and how many times the rate of each peer the worker reaches."""
    rows = []
    for name, value in found.items():
        unit = "an action" if name.startswith("examples") else "actions/s"
        unit = "actions/processor s" if not name.startswith(("producer", "examples")) else unit
        target = TARGETS.get(name)
        met = None if target is None else value >= target
        rows.append({"name": name, "value": round(value, 2), "unit": unit, "target": target, "met": met})
    for peer, least in MIN_RATIO.items():
        for label in ("1 a record", "100 a record"):
            name, theirs = f"worker / {peer}, {label}", found.get(f"{peer}, {label}")
            if theirs is None:
                rows.append(row(name, None, "x", least, "not installed: pip install headrace[bench]"))
            else:
                rows.append(row(name, found[f"worker, {label}"] / theirs, "x", least))
    return rows
