"""A deployment's dead letters: how many by reason, the newest ones, and sending them again."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from rich.console import Console
from rich.table import Table

from headrace.config import Settings
from headrace.foreign_text import foreign
from headrace.forgotten import Forgotten, request_of
from headrace.sentences import say
from stream.producer import ActionProducer, BatchConfig, user_of
from wire.action import Action, decode_record
from wire.action_json import ForgetRequest
from wire.config import ActionConfig
from wire.dead_letter import read_headers
from wire.errors import CodecError
from wire.json_value import decode_json
from wire.kafka.admin import partitions_mismatch
from wire.kafka.consumer import Span, connect, ends, partitions_of, read, spans
from wire.kafka.producer import SEND_S, make_producer
from wire.kafka.reports import check_partitions
from wire.topics import Topics

SHOWN_CHARACTERS = 200


def show(settings: Settings, *, num_last: int = 10, reason: str | None = None, as_json: bool = False) -> int:
    """Print the dead letters by reason, and the last ``num_last`` of them; exit status 0."""
    num_of, last = Counter[str](), list[dict[str, Any]]()
    consumer = connect(settings.kafka)
    try:
        topic = Topics.under(settings.kafka.prefix).dead_letters
        for record in read(consumer, topic, spans(consumer, topic)):
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


def resend(settings: Settings, *, first: int | None = None, despite_retention: bool = False) -> int:
    """Send again what the configuration now accepts; exit status 1 if any of it is still refused. Raises
    `TopicsMismatch` if the actions topic has fewer partitions than the configuration says.

    Begins after the last time, which a consumer group's committed offset remembers, or at offset ``first`` of the
    dead letters' topic. An action without an ``id`` gets one from its letter, so workers recognise what is sent twice.
    Not sent: actions of users and items that were to be forgotten after they came; and, unless ``despite_retention``,
    those of which that is not known, since the actions topic no longer holds all that has come since.
    """
    topics, resending = Topics.under(settings.kafka.prefix), _Resending()
    where = TopicPartition(topics.dead_letters, 0)
    consumer = connect(settings.kafka, group_id=f"{settings.kafka.prefix}-dead-letters")
    try:
        _check_partitions(settings, consumer, topics.actions)
        begin = first if first is not None else _bookmark(consumer, where)
        wanted = {0: Span(begin, ends(consumer, [where])[where])}
        origins = _origins(read(consumer, topics.dead_letters, wanted))
        resending.forgotten = Forgotten.read(settings.kafka, consumer, topics.actions, origins)
        batch = BatchConfig.within(settings.action)
        with ActionProducer(settings.kafka, topics.actions, batch, settings.kafka.partitions) as producer:
            for record in read(consumer, topics.dead_letters, wanted):
                for action in resending.sendable(record, settings.action, despite_retention=despite_retention):
                    producer.send(action)
        resending.repeat_requests(settings, consumer)
        if resending.end > begin:
            consumer.commit({where: OffsetAndMetadata(resending.end, "", -1)})
    finally:
        consumer.close()
    resending.tell(begin, topics.actions)
    return 1 if resending.refused else 0


@dataclass
class _Resending:
    """What becomes of the letters, in order."""

    forgotten: Forgotten = field(default_factory=lambda: Forgotten("", {}))
    end: int = 0
    """The offset after the last letter."""
    num_sent: int = 0
    num_forgotten: int = 0
    num_repeated: int = 0
    users: set[str] = field(default_factory=set)
    """Whose actions were sent."""
    num_unknown: int = 0
    requests: dict[str, None] = field(default_factory=dict)
    """The commands that forget what refused requests were about."""
    refused: Counter[str] = field(default_factory=Counter)
    first_refused: int = -1
    first_unknown: int = -1

    def sendable(self, record: Any, config: ActionConfig, *, despite_retention: bool) -> list[dict[str, Any]]:
        """The actions of a letter that are to be sent."""
        letter, actions, self.end = read_headers(record.headers), acceptable(record, config), record.offset + 1
        if (request := request_of(record.value)) is not None:
            if not request.users:  # a worker's own, which it repeats
                self.requests[_command(request)] = None
            return []
        if not actions:
            self.refused[letter.reason] += 1
            self.first_refused = record.offset if self.first_refused < 0 else self.first_refused
            return []
        if not (despite_retention or self.forgotten.is_known(letter)):
            self.num_unknown += len(actions)
            self.first_unknown = record.offset if self.first_unknown < 0 else self.first_unknown
            return []
        wanted = [action for action in actions if not self.forgotten.covers(letter, action)]
        self.num_forgotten += len(actions) - len(wanted)
        self.num_sent += len(wanted)
        self.users.update(user_of(action) for action in wanted)
        return wanted

    def repeat_requests(self, settings: Settings, consumer: KafkaConsumer) -> None:
        """Send the requests again that came while these users' actions were sent, and may stand before them. What comes
        from now on stands after them. (Items are forgotten wherever the request stands.)"""
        later = {key: record for key, record in self.forgotten.since(settings.kafka, consumer)
                 if key[0] == "user" and key[1] in self.users}  # fmt: skip
        if not later:
            return
        producer = make_producer(settings.kafka)
        try:
            for record in later.values():
                producer.send(record.topic, record.value, record.key, partition=record.partition).get(SEND_S)
        finally:
            producer.close(timeout=2)
        self.num_repeated = len(later)

    def tell(self, begin: int, topic: str) -> None:
        """Say what was sent, what was not, and why."""
        if self.end <= begin:
            say("no new dead letters")
            return
        say(f"sent {self.num_sent:,} actions again, of dead letters {begin} to {self.end - 1}")
        if self.num_forgotten:
            say(f"not sent: {self.num_forgotten:,} actions whose user or item was to be forgotten after they came")
        if self.num_repeated:
            say(f"{self.num_repeated:,} users were to be forgotten meanwhile: these requests were sent again")
        if self.num_unknown:
            say(
                f"not sent: {self.num_unknown:,} actions that are older than what {topic} still holds, so that a "
                "request to forget may be gone. To send them nevertheless: headrace dead-letters --resend --from "
                f"{self.first_unknown} --despite-retention"
            )
        if self.requests:
            say(
                f"not sent: {len(self.requests):,} requests to forget, whose place in the topic decides what is "
                "forgotten; send those that are still wanted:"
            )
            for command in self.requests:
                say(command, has_lines=True)
        if self.refused:
            reasons = ", ".join(f"{name} {num:,}" for name, num in self.refused.most_common())
            say(f"still refused: {reasons}; afterwards: headrace dead-letters --resend --from {self.first_refused}")


def _command(request: ForgetRequest) -> str:
    """What to enter; a comment with what to send to a server if a terminal cannot show the name as it is, since another
    would be forgotten."""
    what, name = ("user", request.user) if request.user else ("item", str(request.item))
    if not name.isprintable():
        content = json.dumps({what: name} | ({"undo": True} if request.is_back else {}))
        return f"# {'a user' if what == 'user' else 'an item'} that no terminal shows; by POST /forget: {content}"
    quoted = f"-- {shlex.quote(name)}" if name.startswith("-") else shlex.quote(name)
    return f"headrace forget {what}{' --undo' if request.is_back else ''} {quoted}"


def _origins(letters: Iterator[Any]) -> dict[int, int]:
    """Partition of the actions topic → the first offset that a letter is from."""
    origins = dict[int, int]()
    for record in letters:
        letter = read_headers(record.headers)
        origins[letter.partition] = min(letter.offset, origins.get(letter.partition, letter.offset))
    return origins


def _check_partitions(settings: Settings, consumer: KafkaConsumer, topic: str) -> None:
    check_partitions(settings.kafka)
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
