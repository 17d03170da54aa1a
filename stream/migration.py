"""The deployment that this one continues: no worker starts before all of its users are here (`headrace repartition`).

A worker that started earlier would not know these users, and would begin new sequences in place of theirs.
"""

from __future__ import annotations

from stream.errors import MigrationUnfinished
from wire.config import KafkaConfig
from wire.control import MIGRATION_KEY, Migration, decode_migration
from wire.errors import VersionError
from wire.kafka.consumer import make_consumer, read, spans
from wire.topics import Topics


def migration_to(kafka: KafkaConfig) -> Migration | None:
    """The migration to this deployment, by the control topic. Raises KafkaError when no broker answers."""
    topic, found = Topics.under(kafka.prefix).control, None
    consumer = make_consumer(kafka)
    try:
        for record in read(consumer, topic, spans(consumer, topic)):
            if record.key == MIGRATION_KEY:
                try:
                    found = decode_migration(record.value) if record.value else None
                except VersionError:
                    continue
    finally:
        consumer.close()
    return found


def refuse_unfinished(kafka: KafkaConfig) -> None:
    """Raise `MigrationUnfinished` while users are being migrated to this deployment."""
    found = migration_to(kafka)
    if found is not None and not found.is_done:
        raise MigrationUnfinished(
            f"kafka.prefix {kafka.prefix!r}: expected all users of {found.source!r} to be here, but headrace "
            f"repartition has not finished ({found.made_by}); run it again, and start the workers after it"
        )
