"""`python -m bench ready [--quick]`: how long a server takes to be ready with a million items and a million users.

(100,000 of each with ``--quick``.) A real broker holds a base of that many items, with full neighbourhoods in the
memory, and what compaction leaves of the users' histories: the sequencer's records of a few hundred users, 20
interactions each on average (geometrically distributed), repeated under other names. Then a server is started as users
start it, twice, and asked for /readyz until it is; the second start finds the topics in the page cache, and so does the
third, with half of the users (`serving.partitions`).
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import torch

from bench.live_stack import toml
from bench.restart import ACTION, SEQUENCE
from bench.scale import CONFIG, Traffic, fill
from bench.streams.simulated import MODEL
from bench.timing import Row, row
from headrace.health import is_healthy
from headrace.processes import ProcessGroup
from state.sequencer import Sequencer
from stream.kafka_producer import Producer
from stream.simulate import KINDS
from tests.brokers import free_port, start_broker
from trainer.loop import Trainer
from trainer.versions.publisher import Publisher
from wire.action import Action, decode_record
from wire.config import KafkaConfig
from wire.example_codec import Header, pack
from wire.kafka.admin import ensure_topics
from wire.partitioner import partition_of
from wire.topics import Topics, example_key

NUM_TEMPLATES, MEAN_INTERACTIONS = 500, 20
TARGET_S, TIMEOUT_S = 15.0, 300.0
BATCH = 500
"""Records that a producer batches."""
START_MS = 1_700_000_000_000
Kept = dict[bytes, tuple[Header, bytes]]
"""What compaction leaves of a user: by key, a header and its columns."""


def templates(num_items: int) -> list[Kept]:
    """What compaction leaves of some users."""
    rng = np.random.default_rng(0)
    found = []
    for length in rng.geometric(1 / MEAN_INTERACTIONS, NUM_TEMPLATES).tolist():
        sequencer, kept = Sequencer(ACTION, SEQUENCE, 0), Kept()
        for at in range(length):
            item = int(num_items * rng.random() ** 3)
            for kind in ("impression", "click")[: 1 + int(rng.random() < 0.3)]:
                time_ms = START_MS + 60_000 * at
                told = {"user": "u", "item": item, "action": kind, "timestamp": time_ms, "features": {"genre": "g"}}
                (action,) = decode_record(msgspec.json.encode(told), time_ms, ACTION)
                assert isinstance(action, Action)
                sequencer.apply(action, sequencer.applied_offset + 1, time_ms)
                for header, columns in sequencer.drain_drafts():
                    header.names = {}  # servers take them from the weights
                    kept[example_key(header.address, SEQUENCE.num_slots)] = header, columns
        found.append(kept)
    return found


def records(kept: list[Kept], num_users: int, partitions: int) -> Iterator[tuple[int, bytes, bytes]]:
    """The records of all users: partition, key and value."""
    numbers = [0] * partitions
    for user in range(num_users):
        name = f"user{user}"
        partition = partition_of(name.encode(), partitions)
        for key, (header, columns) in kept[user % len(kept)].items():
            header.user, header.partition, header.number = name, partition, numbers[partition]
            numbers[partition] += 1
            yield partition, name.encode() + key[1:], pack(header, columns)


async def write(kafka: KafkaConfig, num_users: int, num_items: int) -> int:
    """Fill the sequences topic; returns the number of its records."""
    topic, producer, num = Topics.under(kafka.prefix).sequences, Producer(kafka), 0
    await producer.start()
    waiting: list[list[tuple[bytes, bytes]]] = [[] for _ in range(kafka.partitions)]

    async def send(partition: int) -> None:
        for future in [f async for f, _ in producer.send_all(topic, partition, waiting[partition])]:
            await future
        waiting[partition].clear()

    for partition, key, value in records(templates(num_items), num_users, kafka.partitions):
        waiting[partition].append((key, value))
        num += 1
        if len(waiting[partition]) == BATCH:
            await send(partition)
    for partition in range(kafka.partitions):
        await send(partition)
    await producer.stop()
    return num


def publish(kafka: KafkaConfig, num_items: int) -> int:
    """Publish a base of this many items; returns its bytes."""
    publisher = Publisher(kafka, CONFIG, threading.Event())
    trainer = Trainer(MODEL, CONFIG, lambda _: Traffic(num_items), checkpoint_dir=None, publisher=publisher)
    trainer.start()
    try:
        fill(trainer, num_items)
        trainer.turn()
        trainer.finish()
        publisher.flush(TIMEOUT_S)
        assert publisher.last is not None, "nothing was published"
        return publisher.last.manifest.num_bytes
    finally:
        trainer.close()


@dataclass(frozen=True, slots=True)
class Started:
    """What a start took until the server was ready; then its memory, that of its histories, and of how many users."""

    wall_s: float
    cpu_s: float
    num_bytes: float
    history_bytes: float
    num_users: float


def start(folder: Path, kafka: KafkaConfig, partitions: str = "all") -> Started:
    """Start a server and wait until it is ready."""
    port, path = free_port(), folder / "headrace.toml"
    sections: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap": kafka.bootstrap, "prefix": kafka.prefix},
        "action": {"kinds": list(KINDS), "features": ["genre"]},
        "serving": {"port": port, "history_bytes": 4 << 30, "partitions": partitions},
    }
    path.write_text(toml(sections))

    with ProcessGroup(folder, {}) as group:
        began_s = time.monotonic()
        group.start("server", "-m", "headrace", "serve", "--config", str(path))
        group.wait_until(
            lambda: is_healthy(f"http://127.0.0.1:{port}/readyz"), TIMEOUT_S, "the server to be ready", every_s=0.05
        )
        wall_s = time.monotonic() - began_s
        told = metrics(port)
    return Started(wall_s, told["process_cpu_seconds_total"], told["process_resident_memory_bytes"],
                   told["headrace_history_bytes"], told["headrace_histories"])  # fmt: skip


def metrics(port: int) -> dict[str, float]:
    """A server's metrics without labels, by name."""
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False)  # by no proxy
    lines = answer.raise_for_status().text.splitlines()
    pairs = (line.split(" ") for line in lines if not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, value in pairs}


def measure(num_items: int, num_users: int) -> list[Row]:
    """The rows of the report."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = start_broker(folder / "kafka")
        try:
            kafka = KafkaConfig(bootstrap=broker.bootstrap, prefix=f"bench{uuid.uuid4().hex[:8]}")
            ensure_topics(kafka)
            num = asyncio.run(write(kafka, num_users, num_items))
            num_bytes = publish(kafka, num_items)
            first, again, half = (start(folder, kafka, held) for held in ("all", "all", "1/2"))
        finally:
            broker.stop()
    note = f"{num:,} records of {num_users:,} users, a base of {num_bytes / 1e6:,.0f} MB"
    what = f"{num_items:,} items, {num_users:,} users"
    rows = [
        row(f"{what}: ready after", first.wall_s, "s", TARGET_S, note, most=True),
        row(f"{what}: ready after, started again", again.wall_s, "s", TARGET_S, most=True),
        row(f"{what}: ready after, half of the users held", half.wall_s, "s", TARGET_S, most=True),
    ]
    for name, each in (("all users", again), ("half", half)):
        note = f"{each.num_users:,.0f} histories: {each.history_bytes / 1e6:,.0f} MB"
        rows.append(row(f"{name}: processor time of a start", each.cpu_s, "s"))
        rows.append(row(f"{name}: memory when ready", each.num_bytes / 1e6, "MB", note=note))
    return rows


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    num = 100_000 if quick else 1_000_000
    return measure(num, num)
