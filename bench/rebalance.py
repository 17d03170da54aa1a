"""`python -m bench rebalance [--quick]`: how long actions wait when workers start, end or are killed (rebalances).

Four workers with eight partitions process 1,000 actions per second of 1,000 users on a local broker. One is stopped in
an orderly way and started again; one is killed and started again with an empty disk; one that has a name
(`stream.component`) is restarted at once, and then stopped for longer than its place is kept. For each action the
broker knows when it arrived, and when the first example did of the batch that has it: the difference is how long it
waited.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from kafka import TopicPartition

from bench.live_stack import toml
from bench.timing import Row, row
from headrace.config import read_settings
from headrace.environment import unset_settings
from headrace.processes import Child, ProcessGroup
from stream.simulate import KINDS
from tests.brokers import Broker, start_broker
from wire.config import KafkaConfig
from wire.example_reader import ExampleReader
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import ends, make_consumer, read, spans
from wire.topics import Topics

NUM_WORKERS, NUM_PARTITIONS, RATE = 4, 8, 1_000.0
NAMED, LATE_MS = 0, 1_000
START_S = 90.0


class Workers:
    """Four workers, each with its own disk, and live traffic."""

    def __init__(self, folder: Path, broker: Broker, group: ProcessGroup) -> None:
        self._folder, self._group = folder, group
        prefix = f"bench{uuid.uuid4().hex[:8]}"
        self.kafka = KafkaConfig(bootstrap=broker.bootstrap, prefix=prefix, partitions=NUM_PARTITIONS)
        self.topic = Topics.under(prefix).sequences
        self.workers: list[Child] = []

    def start(self) -> None:
        """Create the topics and start the workers."""
        unset_settings()
        self.workers = [self._start(number) for number in range(NUM_WORKERS)]

    def _start(self, number: int) -> Child:
        path = self._folder / f"worker-{number}.toml"
        sections: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap": self.kafka.bootstrap, "prefix": self.kafka.prefix, "partitions": NUM_PARTITIONS},
            "action": {"kinds": list(KINDS), "features": ["genre"]},
            "store": {"path": str(self.disk(number))},
            "stream": {"metrics_port": 0, **({"component": f"worker-{number}"} if number == NAMED else {})},
        }
        path.write_text(toml(sections))
        if number == 0:
            ensure_topics(read_settings(path).kafka)
        return self._group.start(f"worker-{number}", "-m", "stream", "worker", "--config", str(path))

    def disk(self, number: int) -> Path:
        """Where a worker keeps its databases."""
        return self._folder / f"disk-{number}"

    def send(self) -> None:
        """Start the live traffic."""
        options = ("--rate", str(RATE))
        config = str(self._folder / "worker-0.toml")
        self._group.start("traffic", "-m", "stream", "simulate", "--config", config, *options)

    def num_examples(self) -> int:
        """The number of records in the sequences topic."""
        consumer = make_consumer(self.kafka)
        try:
            return sum(ends(consumer, [TopicPartition(self.topic, each) for each in range(NUM_PARTITIONS)]).values())
        finally:
            consumer.close()

    def waits(self) -> np.ndarray:
        """(n, 2) in ms: for each action, when the first example of its batch arrived, and how long after it."""
        topics, consumer = Topics.under(self.kafka.prefix), make_consumer(self.kafka)
        try:
            actions = list(read(consumer, topics.actions, spans(consumer, topics.actions)))
            now_ms = round(1000 * time.time())
            examples = list(read(consumer, self.topic, spans(consumer, self.topic)))
            return waits_of(actions, examples, now_ms)
        finally:
            consumer.close()


def waits_of(actions: Iterable[Any], examples: Iterable[Any], now_ms: int) -> np.ndarray:
    """`Workers.waits`, from the records of both topics. One example covers all that a user did in a backlog. An action
    that still waits counts with the time until ``now_ms``."""
    waiting, reader, found = defaultdict[int, deque[tuple[int, int]]](deque), ExampleReader("examples"), []
    for record in actions:
        content = msgspec.json.decode(record.value)
        num = len(content) if isinstance(content, list) else 1
        waiting[record.partition] += [(record.offset, record.timestamp)] * num
    for record in examples:
        example, own = reader.read(record.partition, record.offset, record.value), waiting[record.partition]
        while example is not None and own and own[0][0] <= example.applied_offset:
            found.append((record.timestamp, record.timestamp - own.popleft()[1]))
    found += [(now_ms, max(0, now_ms - came_ms)) for own in waiting.values() for _, came_ms in own]
    return np.array(found, np.int64)


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    phase_s, said = 20.0 if quick else 30.0, list[tuple[str, int]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = start_broker(folder / "kafka")
        try:
            with ProcessGroup(folder, {"OMP_NUM_THREADS": "1"}) as group:
                made = Workers(folder, broker, group)
                made.start()
                made.send()
                group.wait_until(lambda: made.num_examples() > 5 * RATE, START_S, "the first examples", every_s=1.0)

                def phase(what: str, act: Callable[[], object] = lambda: None) -> None:
                    said.append((what, round(1000 * time.time())))
                    act()
                    time.sleep(phase_s)

                last, named = made.workers[-1], made.workers[NAMED]

                def start_anew() -> None:
                    shutil.rmtree(made.disk(NUM_WORKERS - 1))
                    last.start()

                def restart() -> None:
                    named.stop()
                    named.start()

                phase("nothing happens")
                phase("a worker is stopped", last.stop)
                phase("it is started again", last.start)
                phase("it is killed", last.kill)
                phase("it is started again with an empty disk", start_anew)
                phase("one with a name is restarted", restart)
                phase("it is stopped", named.stop)
                waits = made.waits()
        finally:
            broker.stop()
    stops = [*(start for _, start in said[1:]), said[-1][1] + round(1000 * phase_s)]
    return [_of(what, waits, start, stop) for (what, start), stop in zip(said, stops, strict=True)]


def _of(what: str, waits: np.ndarray, start_ms: int, stop_ms: int) -> Row:
    sent_ms = waits[:, 0] - waits[:, 1]
    own = waits[(sent_ms >= start_ms) & (sent_ms < stop_ms), 1]
    late = f"{100 * np.mean(own > LATE_MS):.1f}% of the actions waited longer than a second" if len(own) else "none"
    note = f"median {np.median(own) / 1000:.3f} s, p99 {np.percentile(own, 99) / 1000:.2f} s; {late}"
    return row(f"{what}: the longest wait of an action", own.max() / 1000, "s", note=note)
