"""History before live traffic: puts a file at the start of the actions topic, once, and reports the offsets at its end.

Each partition of the topic must begin with that partition's share of the file, action by action in the file's order.
What is there already is compared with the file and not sent again, so a backfill that was killed continues where the
log ends. Live traffic begins at the offset after the file's last action. If an action that is not from the file comes
before that offset, no reordering can help, and the error names the offset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from stream.config import Settings
from stream.errors import BackfillError
from stream.files import read_actions
from stream.producer import ActionProducer, BatchConfig, placed
from wire.config import KafkaConfig
from wire.errors import CodecError
from wire.json_value import decode_json
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect, read, spans
from wire.topics import Topics


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """Where history ends. ``offsets``: partition → the first offset that is not history. ``num_actions``: of the file.
    ``num_sent``: sent by this run."""

    offsets: dict[int, int]
    num_actions: int
    num_sent: int


@dataclass(slots=True)
class _Log:
    """What a partition holds: how many of the file's actions, and the offset after the last of them."""

    num_actions: int = 0
    end: int = 0


def backfill(
    actions: Iterable[Mapping[str, Any]], kafka: KafkaConfig, batch: BatchConfig | None = None
) -> BackfillReport:
    """Send what is missing of the file, then read all of it back. Raises `BackfillError`."""
    topic = Topics.under(kafka.prefix).actions
    shares: dict[int, list[Mapping[str, Any]]] = {partition: [] for partition in range(kafka.partitions)}
    for action in actions:
        shares[placed(action, kafka.partitions)].append(action)
    before = _compared(kafka, topic, shares)
    with ActionProducer(kafka, topic, batch, kafka.partitions) as producer:
        for partition, share in shares.items():
            for action in share[before[partition].num_actions :]:
                producer.send(action)
        producer.flush()
        num_sent = producer.num_actions
    after = _compared(kafka, topic, shares)
    for partition, share in shares.items():
        missing = len(share) - after[partition].num_actions
        if missing:
            raise BackfillError(
                f"{topic}, partition {partition}: expected all {len(share)} actions of the file, {missing} are "
                "missing; run it again"
            )
    offsets = {partition: log.end for partition, log in after.items()}
    return BackfillReport(offsets, sum(map(len, shares.values())), num_sent)


def _compared(kafka: KafkaConfig, topic: str, shares: Mapping[int, list[Mapping[str, Any]]]) -> dict[int, _Log]:
    """How much of each partition's share is there. What follows a complete share is live traffic, and not checked."""
    consumer = connect(kafka)
    try:
        held = spans(consumer, topic)
        logs = {partition: _Log(end=span.first) for partition, span in held.items()}
        for partition, span in held.items():
            if span.first:
                raise BackfillError(
                    f"{topic}, partition {partition}: expected its first record at offset 0, got {span.first}: "
                    "retention has removed the start, so it cannot be checked; give the deployment a new kafka.prefix"
                )
        for record in read(consumer, topic, held):
            _compare(topic, record, shares[record.partition], logs[record.partition])
    finally:
        consumer.close()
    return logs


def _compare(topic: str, record: Any, share: list[Mapping[str, Any]], log: _Log) -> None:
    if log.num_actions == len(share):
        return
    try:
        content: Any = decode_json(record.value)
    except CodecError:
        content = None
    found = content if isinstance(content, list) else [content]
    expected = [_plain(action) for action in share[log.num_actions : log.num_actions + len(found)]]
    if found != expected:
        raise BackfillError(
            f"{topic}, partition {record.partition}, offset {record.offset}: expected the file's "
            f"actions from number {log.num_actions:,} of {len(share):,} on, got others: live traffic began before the "
            "history was complete, or the file has changed. Give the deployment a new kafka.prefix, backfill, then "
            "start the producers"
        )
    log.num_actions += len(found)
    log.end = record.offset + 1


def _plain(action: Mapping[str, Any]) -> Any:
    return msgspec.json.decode(msgspec.json.encode(action))


def run(settings: Settings, path: Path) -> int:
    """Backfill a file and print where live traffic begins; returns the exit status. Raises `BackfillError` and
    `stream.errors.FileError`."""
    actions = list(read_actions(path, settings.action))
    ensure_topics(settings.kafka)
    done = backfill(actions, settings.kafka, BatchConfig.within(settings.action))
    topic = Topics.under(settings.kafka.prefix).actions
    print(f"history: {done.num_actions:,} actions of {path.name}, {done.num_sent:,} of them sent now")
    for partition, offset in sorted(done.offsets.items()):
        print(f"  {topic}, partition {partition}: history ends before offset {offset}; live traffic begins there")
    return 0
