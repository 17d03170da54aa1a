"""`headrace forget`: make the deployment forget a user or an item, by a request in the actions topic.

A request travels like any action, and the partition's worker carries it out at its offset. So the result is the same
whatever is killed, restored or replayed. `docs/operations.md` lists what remains of a user, where and for how long.
"""

from __future__ import annotations

import time

import msgspec

from headrace.config import Settings
from headrace.sentences import say
from wire.action_json import ForgetRequest, Refused, forget_request_of
from wire.cluster import ClusterState
from wire.errors import HeadraceError
from wire.hashing import canonical
from wire.kafka.consumer import connect, read, spans
from wire.kafka.producer import send_one
from wire.topics import Topics

LOOK_S = 0.2


def forget(settings: Settings, what: str, name: str, *, is_back: bool = False, wait_s: float = 60.0) -> int:
    """Send the request and wait until a worker has carried it out. Status 1 if that takes longer than ``wait_s``."""
    try:
        request = forget_request_of({"forget": not is_back, what: name})
    except Refused as error:
        raise HeadraceError(str(error)) from None
    assert request is not None
    partition, offset = _send(settings, request, {"forget": not is_back, what: name})
    if not _is_carried_out(settings, partition, offset, wait_s):
        say(
            f"sent (partition {partition}, offset {offset}), but not carried out within {wait_s:.0f} s: a worker will "
            "do that as soon as one runs; `headrace lag` shows which stage is behind"
        )
        return 1
    say(_told(settings, request))
    return 0


def _send(settings: Settings, request: ForgetRequest, content: dict[str, str | bool]) -> tuple[int, int]:
    topic, key = Topics.under(settings.kafka.prefix).actions, canonical(request.user or request.item).encode()
    placed = send_one(settings.kafka, topic, key, msgspec.json.encode(content), "request")
    return int(placed.partition), int(placed.offset)


def _is_carried_out(settings: Settings, partition: int, offset: int, wait_s: float) -> bool:
    """Whether a worker has applied that offset, and the results have left its outbox."""
    topic, until = Topics.under(settings.kafka.prefix).status, time.monotonic() + wait_s
    consumer = connect(settings.kafka)
    try:
        while time.monotonic() < until:
            cluster = ClusterState()
            for record in read(consumer, topic, spans(consumer, topic)):
                cluster.note(record.value)
            status = cluster.workers.get(partition)
            if status is not None and status.applied_offset >= offset and status.outbox_len == 0:
                return True
            time.sleep(LOOK_S)
    finally:
        consumer.close()
    return False


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
        f"user {request.user}: removed from the worker's store and from the servers. In the sequences topic the user's "
        "records have tombstones, and Kafka's compaction will remove them. The actions remain in the actions topic "
        f"until its retention ends ({days:g} days), and refused ones in the dead-letter topic. The weights keep what "
        "they learned from the user, without the name. docs/operations.md has the full list"
    )
