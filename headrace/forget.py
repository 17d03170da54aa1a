"""`headrace forget`: make the deployment forget a user or an item, by a request in the actions topic.

A request travels like any action, and the partition's worker carries it out at its offset. So the result is the same
whatever is killed, restored or replayed. `docs/operations.md` lists what remains of a user, where and for how long.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from headrace.config import Settings
from headrace.sentences import say
from wire.action_json import ForgetRequest, Refused, forget_request_of
from wire.cluster import ClusterState
from wire.dead_letter import read_headers
from wire.errors import BrokerUnavailable, HeadraceError, brief
from wire.example_reader import ExampleReader
from wire.kafka.consumer import connect, read, read_from, spans
from wire.kafka.producer import send_one
from wire.kafka.reports import check_partitions
from wire.topics import Topics

LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request, at its place in the actions topic, and where what comes of it is written: after ``marks_from`` in the
    sequences topic, or after ``letters_from`` among the dead letters."""

    partition: int
    offset: int
    marks_from: int
    letters_from: int


def forget(settings: Settings, what: str, name: str, *, is_back: bool = False, wait_s: float = 60.0) -> int:
    """Send the request and wait until a worker has carried it out. Status 1 if that takes longer than ``wait_s``, or if
    the broker goes away meanwhile. Raises `HeadraceError` if the worker refuses it, or if it cannot be sent to where
    the worker would take it."""
    content: dict[str, str | bool] = {"forget": not is_back, what: name}
    try:
        request = forget_request_of(content)
    except Refused as error:
        raise HeadraceError(str(error)) from None
    assert request is not None
    sent = _send(settings, request, content)
    try:
        is_done, until = _is_carried_out(settings, sent, wait_s), f"within {wait_s:.0f} s"
    except (KafkaError, BrokerUnavailable) as error:
        is_done, until = False, f"while it could be followed ({brief(error)})"
    if not is_done:
        say(
            f"sent (partition {sent.partition}, offset {sent.offset}), but not carried out {until}: a "
            "worker will do that as soon as one runs; `headrace lag` shows which stage is behind"
        )
        return 1
    say(_told(settings, request))
    return 0


def _send(settings: Settings, request: ForgetRequest, content: dict[str, str | bool]) -> _Sent:
    topics, key = Topics.under(settings.kafka.prefix), request.keys[0].encode()
    consumer = connect(settings.kafka)
    try:
        check_partitions(settings.kafka)
        marks, letters = (spans(consumer, topic) for topic in (topics.sequences, topics.dead_letters))
    finally:
        consumer.close()
    placed = send_one(settings.kafka, topics.actions, key, msgspec.json.encode(content), "request")
    return _Sent(placed.partition, placed.offset, marks[placed.partition].end, letters[0].end)


def _is_carried_out(settings: Settings, sent: _Sent, wait_s: float) -> bool:
    """Whether a worker has applied that offset, and what it made of the request has left its outbox. That it applied
    the offset is not enough: it may have refused the request, or have reported on a topic that was there before."""
    topics, until = Topics.under(settings.kafka.prefix), time.monotonic() + wait_s
    consumer = connect(settings.kafka)
    try:
        while time.monotonic() < until:
            cluster = ClusterState()
            for record in read(consumer, topics.status, spans(consumer, topics.status)):
                cluster.note(record.value)
            status = cluster.workers.get(sent.partition)
            if status is not None and status.applied_offset >= sent.offset and status.outbox_len == 0:
                if _is_marked(consumer, topics.sequences, sent):
                    return True
                _check_letters(consumer, topics, sent)
            time.sleep(LOOK_S)
    finally:
        consumer.close()
    return False


def _is_marked(consumer: KafkaConsumer, topic: str, sent: _Sent) -> bool:
    """Whether the sequences topic has the request's mark, by which all readers forget."""
    decoder = ExampleReader(topic)
    for record in read_from(consumer, TopicPartition(topic, sent.partition), sent.marks_from):
        example = decoder.read(record.partition, record.offset, record.value)
        if example is not None and example.mark is not None and example.user_offset == sent.offset:
            return True
    return False


def _check_letters(consumer: KafkaConsumer, topics: Topics, sent: _Sent) -> None:
    """Raise `HeadraceError` if the request is among the dead letters."""
    for record in read_from(consumer, TopicPartition(topics.dead_letters, 0), sent.letters_from):
        letter = read_headers(record.headers)
        if (letter.topic, letter.partition, letter.offset) == (topics.actions, sent.partition, sent.offset):
            raise HeadraceError(
                f"nothing is forgotten: the worker refused the request ({letter.reason}: {letter.message}). Correct "
                "that, kafka.partitions for instance, which must be the worker's, and send it again"
            )


def _told(settings: Settings, request: ForgetRequest) -> str:
    days = settings.kafka.actions_retention_s / 86_400
    if request.is_back:
        return f"item {request.item}: no longer forgotten; from its next action on it is learned as a new item"
    if not request.user:
        return (
            f"item {request.item}: no longer recommended by any server that follows its topics; the trainer drops its "
            "row and its counts, and learns nothing about it until `headrace forget item ID --undo`"
        )
    return (
        f"user {request.user}: removed from the worker's store and, as they read on, from the servers. In the "
        "sequences topic the user's records have tombstones, and Kafka's compaction will remove them. The actions "
        f"remain in the actions topic until its retention ends ({days:g} days), and refused ones in the dead-letter "
        "topic. The weights keep what they learned from the user, without the name. docs/operations.md has the full "
        "list"
    )
