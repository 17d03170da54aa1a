"""Records of the sequences topic as examples. What is none of its partition is skipped, counted and told.

Anybody may write to a topic. A record that does not start like an example, is damaged, or names another partition, is
no reason to stop: where one of ours was damaged, its number is missing, and whoever needs all of them notices that. A
record of another layout is another matter: everything here would be, so `CodecError` is raised.
"""

from __future__ import annotations

import structlog

from wire.errors import CodecError
from wire.example import Example
from wire.example_codec import LAYOUT, MAGIC, decode_example

log = structlog.get_logger("wire")
NUM_TOLD = 10
"""So many foreign records are told one by one; then one in a thousand."""


class ExampleReader:
    """Decodes what is read of one topic."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.num_foreign = 0

    def read(self, partition: int, offset: int, value: bytes | None) -> Example | None:
        """The example, or None for what is none. Raises `CodecError` for one of another layout."""
        if value is None:  # a tombstone
            return None
        try:
            example = decode_example(value)
        except CodecError as error:
            if value.startswith(MAGIC) and value[len(MAGIC) : len(MAGIC) + 1] not in (b"", bytes((LAYOUT,))):
                raise CodecError(f"{self.topic} partition {partition} offset {offset}: {error}") from None
            self._skip(partition, offset, str(error))
            return None
        if example.partition != partition:
            self._skip(partition, offset, f"an example of partition {example.partition}")
            return None
        return example

    def _skip(self, partition: int, offset: int, why: str) -> None:
        self.num_foreign += 1
        if self.num_foreign <= NUM_TOLD or self.num_foreign % 1000 == 0:
            log.warning(
                "a foreign record is skipped; find out who writes there", topic=self.topic, partition=partition,
                offset=offset, why=why, num_so_far=self.num_foreign,
            )  # fmt: skip
