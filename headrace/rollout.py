"""`headrace pin`, `unpin` and `rollback`: which version all servers of a deployment answer from."""

from __future__ import annotations

import getpass
import platform
import time

from kafka.errors import KafkaError

from headrace.config import Settings
from headrace.versions import manifests
from wire.control import PIN_KEY, Pin, Which, encode_pin, parse_version
from wire.errors import HeadraceError, VersionError
from wire.kafka.consumer import connect, partitions_of
from wire.kafka.producer import make_producer
from wire.topics import Topics
from wire.weights import Manifest

SEND_S = 20.0


def pin(settings: Settings, version: str, reason: str = "") -> int:
    """Pin a version, which may be one to come."""
    which = parse_version(version)
    return _pin(settings, which, reason, _known(settings, which))


def rollback(settings: Settings, version: str | None, reason: str = "") -> int:
    """Pin a version that is in the topic; None: the last one of the epoch before the newest, or the one before it."""
    listed = manifests(settings)
    if version is None:
        if len(listed) < 2:
            raise VersionError(f"rollback: expected two versions or more in the topic, got {len(listed)}")
        earlier = [each for each in listed if each.epoch < listed[-1].epoch]
        chosen = (earlier or listed[:-1])[-1]
        return _pin(settings, chosen.which, reason or "rollback", chosen)
    which = parse_version(version)
    found = next((each for each in reversed(listed) if each.which == which), None)
    if found is None:
        span = f"{_name(listed[0].which)} to {_name(listed[-1].which)}" if listed else "none"
        raise VersionError(
            f"rollback: expected a version that is in the topic ({span}), got {version}; `headrace versions` lists them"
        )
    return _pin(settings, which, reason or "rollback", found)


def unpin(settings: Settings) -> int:
    """Let servers follow the newest good version again."""
    _send(settings, None)
    print("servers follow the newest good version again")
    return 0


def _known(settings: Settings, which: Which) -> Manifest | None:
    return next((each for each in reversed(manifests(settings)) if each.which == which), None)


def _pin(settings: Settings, which: Which, reason: str, found: Manifest | None) -> int:
    made_by = f"{getpass.getuser()}@{platform.node()}"
    _send(
        settings, Pin(epoch=which[0], number=which[1], made_ms=int(time.time() * 1000), made_by=made_by, reason=reason)
    )
    age = "which is still to come" if found is None else f"of {found.num_interactions:,} interactions"
    print(f"servers answer from version {_name(which)} ({age}) until `headrace unpin`; /readyz of each says so")
    return 0


def _send(settings: Settings, order: Pin | None) -> None:
    topic = Topics.under(settings.kafka.prefix).control
    consumer = connect(settings.kafka)
    try:
        partitions_of(consumer, topic)  # raises `TopicMissing`, with its remedy
    finally:
        consumer.close()
    producer = make_producer(settings.kafka)
    try:
        producer.send(topic, key=PIN_KEY, value=encode_pin(order) if order is not None else None).get(SEND_S)
    except KafkaError as error:
        raise HeadraceError(f"the broker did not take the order ({error}); nothing has changed, try again") from error
    finally:
        producer.close(timeout=2)


def _name(which: Which) -> str:
    return f"{which[0]}/{which[1]}"
