"""The deployment that this one continues: until all of its users are here (`headrace repartition`), no worker starts.

A worker that began earlier would meet users of whom it knows nothing, and give their places in the sequences to others.
"""

from __future__ import annotations

from stream.errors import HandoverUnfinished
from wire.config import KafkaConfig
from wire.control import HANDOVER_KEY, Handover, decode_handover
from wire.errors import VersionError
from wire.kafka.consumer import make_consumer, read, spans
from wire.topics import Topics


def handover_to(kafka: KafkaConfig) -> Handover | None:
    """What the control topic says of a handover to this deployment. Raises KafkaError when no broker answers."""
    topic, found = Topics.under(kafka.prefix).control, None
    consumer = make_consumer(kafka)
    try:
        for record in read(consumer, topic, spans(consumer, topic)):
            if record.key == HANDOVER_KEY:
                try:
                    found = decode_handover(record.value) if record.value else None
                except VersionError:
                    continue
    finally:
        consumer.close()
    return found


def refuse_unfinished(kafka: KafkaConfig) -> None:
    """Raise `HandoverUnfinished` while users are being carried over to this deployment."""
    found = handover_to(kafka)
    if found is not None and not found.is_done:
        raise HandoverUnfinished(
            f"kafka.prefix {kafka.prefix!r}: expected all users of {found.source!r} to be here, but headrace "
            f"repartition has not finished ({found.made_by}); run it again, and start the workers after it"
        )
