"""How long a server takes to be ready again after a day: it reads the sequences topic from its start.

A share of a day's live traffic goes through the sequencer into a real broker, batched as a worker would batch it at
that rate; then a `serving.users.follower.HistoryFollower` reads it all. A topic of a few records says what is paid
once: connecting, and asking where the topic ends. The rest is proportional to the number of records, so a whole day is
extrapolated. The last day is not compacted (`kafka.min_compaction_lag_s`). Of the days before it, only each key's
newest record is left. Reading those is reported separately: it is the cost per user.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.options import parser_of
from bench.output.report import report
from bench.timing import Row, row
from serving.users.follower import HistoryFollower
from serving.users.histories import Histories
from serving.users.shard import Shard
from state.sequencer import Sequencer
from stream.kafka_producer import Producer
from stream.simulate import KINDS, World, WorldConfig
from tests.brokers import start_broker
from wire.action import Action, decode_record
from wire.config import ActionConfig, KafkaConfig, SequenceConfig
from wire.example_codec import pack
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import make_consumer
from wire.partitioner import partition_of
from wire.topics import Topics, example_key

RATE, DAY_S, WINDOW_MS = 300, 86_400, 100
"""Actions per second, and the span of traffic that a worker writes at a time."""
USERS_A_DAY = 100_000
ACTION, SEQUENCE = ActionConfig(kinds=KINDS, features=("genre",)), SequenceConfig()
QUICK_SHARE, SHARE = 1 / 200, 1 / 24
TIMEOUT_S = 120.0
FEW = 100
TARGET_S = 60.0

Told = tuple[int, bytes, bytes]
"""A record of the sequences topic: partition, key, value."""


def told(num_actions: int, num_users: int, partitions: int) -> Iterator[list[Told]]:
    """The records that the workers write, window by window."""
    sequencers = [Sequencer(ACTION, SEQUENCE, partition) for partition in range(partitions)]
    config = WorldConfig(num_users=num_users, actions_per_s=RATE)
    end_ms = config.start_ms + WINDOW_MS
    for offset, action in zip(range(num_actions), World(config).actions(), strict=False):
        if action["timestamp"] >= end_ms:
            yield _drained(sequencers)
            end_ms += WINDOW_MS
        (one,) = decode_record(msgspec.json.encode(action), action["timestamp"], ACTION)
        assert isinstance(one, Action)
        sequencers[partition_of(one.user.encode(), partitions)].apply(one, offset, action["timestamp"])
    yield _drained(sequencers)


def _drained(sequencers: list[Sequencer]) -> list[Told]:
    return [
        (partition, example_key(header.address, SEQUENCE.num_slots), pack(header, columns))
        for partition, sequencer in enumerate(sequencers)
        for header, columns in sequencer.drain_drafts()
    ]


async def write(kafka: KafkaConfig, windows: Iterator[list[Told]]) -> tuple[int, list[Told]]:
    """Produce the records; returns their number, and those that compaction would leave: the newest of each key."""
    topic, producer, num, newest = Topics.under(kafka.prefix).sequences, Producer(kafka), 0, dict[bytes, Told]()
    await producer.start()
    sent: list[Any] = []
    for window in windows:
        for partition in range(kafka.partitions):
            own = [(key, value) for each, key, value in window if each == partition]
            async for future, _ in producer.send_all(topic, partition, own):
                sent.append(future)
        for record in window:
            newest.pop(record[1], None)
            newest[record[1]] = record
        num += len(window)
        if len(sent) > 200:
            await asyncio.gather(*sent)
            sent.clear()
    await asyncio.gather(*sent)
    await producer.stop()
    return num, list(newest.values())


@dataclass(frozen=True, slots=True)
class Taken:
    """The cost of reading: wall-clock and processor seconds, and the memory of the histories."""

    wall_s: float
    cpu_s: float
    num_users: int
    num_bytes: int


def read(kafka: KafkaConfig, partitions: str = "all") -> Taken:
    """Read the topic as a new server that holds these partitions does."""
    histories = Histories(8 << 30, SEQUENCE.max_context)
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    shard = Shard(partitions)
    follower = HistoryFollower(make_consumer(kafka), Topics.under(kafka.prefix).sequences, histories, shard)
    follower.start()
    ready = follower.caught_up.wait(TIMEOUT_S)
    taken = Taken(time.monotonic() - began_s, time.process_time() - began_cpu_s, len(histories), histories.num_bytes)
    follower.stop()
    follower.join()
    if follower.failure is not None or not ready:
        raise RuntimeError(f"not read within {TIMEOUT_S} s") from follower.failure
    return taken


def read_alone(kafka: KafkaConfig, name: str, records: list[Told]) -> Taken:
    """Read a topic that holds these records alone."""
    other = KafkaConfig(bootstrap=kafka.bootstrap, prefix=f"{kafka.prefix}{name}")
    ensure_topics(other)
    asyncio.run(write(other, iter([records[at : at + 100] for at in range(0, len(records), 100)])))
    return read(other)


def measure(share: float) -> list[Row]:
    """The rows of the report, from this share of a day."""
    num_actions, num_users = round(RATE * DAY_S * share), max(100, round(USERS_A_DAY * share))
    with tempfile.TemporaryDirectory() as name:
        broker = start_broker(Path(name) / "kafka")
        try:
            kafka = KafkaConfig(bootstrap=broker.bootstrap, prefix=f"bench{uuid.uuid4().hex[:8]}")
            ensure_topics(kafka)
            num, newest = asyncio.run(write(kafka, told(num_actions, num_users, kafka.partitions)))
            day, half = read(kafka), read(kafka, "1/2")
            few = read_alone(kafka, "few", newest[:FEW])
            compacted = read_alone(kafka, "left", newest)
        finally:
            broker.stop()
    what = f"1/{1 / share:.0f} of a day: {num_actions:,} actions of {num_users:,} users, {num:,} records"
    day_s, compacted_s = day.wall_s - few.wall_s, compacted.wall_s - few.wall_s
    note = f"{few.wall_s:.2f} s once, {day_s:.2f} s for the share"
    return [
        row("records read", num / day_s, "records/s", note=what),
        row("a day at 300 actions/s", few.wall_s + day_s / share, "s", TARGET_S, note, most=True),
        row("a day at 300 actions/s, processor", few.cpu_s + (day.cpu_s - few.cpu_s) / share, "s"),
        row("the same with half of the users held, processor", few.cpu_s + (half.cpu_s - few.cpu_s) / share, "s",
            note=f"{half.num_users:,} of {day.num_users:,} users, {half.num_bytes / 1e6:,.0f} of "
            f"{day.num_bytes / 1e6:,.0f} MB"),
        row("compacted: records read", len(newest) / compacted_s, "records/s", note=f"{len(newest):,} keys"),
        row("compacted: a million users of earlier days", 1e6 * compacted_s / compacted.num_users, "s",
            note=f"{len(newest) / compacted.num_users:.1f} records per user"),
        row("histories", day.num_bytes / day.num_users, "bytes per user"),
    ]  # fmt: skip


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("restart", __doc__)
    parser.add_argument("--share", type=float, help=f"share of a day; default: 1/24, with --quick {QUICK_SHARE:g}")
    options = parser.parse_args(arguments)
    share = options.share or (QUICK_SHARE if options.quick else SHARE)
    return report("restart", arguments, measure(share), options.out)
