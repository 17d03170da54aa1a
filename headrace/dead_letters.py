"""A deployment's dead letters: how many by reason, the newest ones, and sending them again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from rich.console import Console
from rich.table import Table

from headrace.config import Settings
from headrace.foreign_text import foreign
from headrace.sentences import say
from stream.producer import ActionProducer, BatchConfig
from wire.action import Action, decode_record
from wire.config import ActionConfig
from wire.dead_letter import read_headers
from wire.errors import CodecError
from wire.json_value import decode_json
from wire.kafka.admin import partitions_mismatch
from wire.kafka.consumer import Span, connect, ends, partitions_of, read, spans
from wire.topics import Topics

SHOWN_CHARACTERS = 200


def show(settings: Settings, *, num_last: int = 10, reason: str | None = None, as_json: bool = False) -> int:
    """Print the dead letters by reason, and the last ``num_last`` of them; exit status 0."""
    num_of, last = Counter[str](), list[dict[str, Any]]()
    consumer = connect(settings.kafka)
    try:
        for record in _letters(consumer, Topics.under(settings.kafka.prefix).dead_letters, 0):
            letter = _described(record)
            num_of[letter["reason"]] += 1
            if reason in (None, letter["reason"]):
                last = [*last, letter][-num_last:]
    finally:
        consumer.close()
    if as_json:
        print(json.dumps({"num": num_of.total(), "by_reason": dict(num_of.most_common()), "last": last}))
    else:
        _print(settings, num_of, last)
    return 0


def resend(settings: Settings, *, first: int | None = None) -> int:
    """Send again what the configuration now accepts; exit status 1 if any of it is still refused. Raises
    `TopicsMismatch` if the actions topic has fewer partitions than the configuration says.

    Begins after the last time, which a consumer group's committed offset remembers, or at offset ``first`` of the
    dead letters' topic. An action without an ``id`` gets one from its letter, so workers recognise what is sent twice.
    """
    topics, sent, still = Topics.under(settings.kafka.prefix), 0, Counter[str]()
    where = TopicPartition(topics.dead_letters, 0)
    consumer = connect(settings.kafka, group_id=f"{settings.kafka.prefix}-dead-letters")
    try:
        _check_partitions(settings, consumer, topics.actions)
        begin = first if first is not None else _bookmark(consumer, where)
        end, first_refused = begin, -1
        batch = BatchConfig.within(settings.action)
        with ActionProducer(settings.kafka, topics.actions, batch, settings.kafka.partitions) as producer:
            for record in _letters(consumer, topics.dead_letters, begin):
                actions = acceptable(record, settings.action)
                for action in actions:
                    producer.send(action)
                sent, end = sent + len(actions), record.offset + 1
                if not actions:
                    still[_described(record)["reason"]] += 1
                    first_refused = record.offset if first_refused < 0 else first_refused
        if end > begin:
            consumer.commit({where: OffsetAndMetadata(end, "", -1)})
    finally:
        consumer.close()
    say(f"sent {sent:,} actions again, of dead letters {begin} to {end - 1}" if end > begin else "no new dead letters")
    if still:
        reasons = ", ".join(f"{name} {num:,}" for name, num in still.most_common())
        say(f"still refused: {reasons}; afterwards: headrace dead-letters --resend --from {first_refused}")
    return 1 if still else 0


def _check_partitions(settings: Settings, consumer: KafkaConsumer, topic: str) -> None:
    expected, found = settings.kafka.partitions, len(partitions_of(consumer, topic))
    if found < expected:
        raise partitions_mismatch(topic, expected, found)
    if found > expected:
        say(
            f"{topic} has {found} partitions, and kafka.partitions is {expected}: actions are sent to the first "
            f"{expected}, where the workers of a deployment that was created with so many take them"
        )


def _bookmark(consumer: KafkaConsumer, where: TopicPartition) -> int:
    """The offset after the last time; 0 if the topic ends before it, having been deleted and created again."""
    known = consumer.committed(where) or 0
    return known if known <= ends(consumer, [where])[where] else 0


def acceptable(record: Any, config: ActionConfig) -> list[dict[str, Any]]:
    """The actions in a dead letter if the worker would now accept all of them, otherwise none."""
    outcomes = decode_record(record.value, time.time_ns() // 1_000_000, config)
    if not record.value or not all(isinstance(outcome, Action) for outcome in outcomes):
        return []
    try:
        content: Any = decode_json(record.value)
    except CodecError:  # a number that no double can hold, in a field that is not used
        return []
    letter = _described(record)
    actions = content if isinstance(content, list) else [content]
    place = f"dead-letter/{letter['from']}"
    return [
        action if action.get("id") is not None else {**action, "id": f"{place}/{max(letter['index'], 0) + number}"}
        for number, action in enumerate(actions)
    ]


def _letters(consumer: KafkaConsumer, topic: str, first: int) -> Iterator[Any]:
    held = {number: Span(max(first, span.first), span.end) for number, span in spans(consumer, topic).items()}
    return read(consumer, topic, held)


def _described(record: Any) -> dict[str, Any]:
    letter = read_headers(record.headers)
    return {
        "offset": record.offset,
        "reason": letter.reason,
        "message": letter.message,
        "from": letter.place,
        "index": letter.index,
        "value": (record.value or b"").decode("utf-8", "replace")[:SHOWN_CHARACTERS],
    }


def _print(settings: Settings, num_of: Counter[str], last: list[dict[str, Any]]) -> None:
    console = Console()
    if not num_of:
        console.print(f"no dead letters in {Topics.under(settings.kafka.prefix).dead_letters}")
        return
    by_reason = ", ".join(f"{reason} {num:,}" for reason, num in num_of.most_common())
    table = Table(title=foreign(f"{num_of.total():,} dead letters: {by_reason}"))
    for name in ("offset", "reason", "from", "message", "value"):
        table.add_column(name, overflow="fold")
    for letter in last:
        table.add_row(*(foreign(str(letter[name])) for name in ("offset", "reason", "from", "message", "value")))
    console.print(table)
    console.print("once the cause is fixed, or the configuration: headrace dead-letters --resend")
