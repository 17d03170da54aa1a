"""Decodes records of the sequences topic. What is not an example of its partition is skipped, counted and logged.

Anyone may write to a topic. A record that does not start like an example, is damaged, names another partition, or has
another number of features than all others is no reason to stop: if it was one of ours, its number is missing, and
readers that need all of them notice. A record with another layout is different: all the others would have it too, so
`CodecError` is raised.
"""

from __future__ import annotations

import structlog

from wire.errors import CodecError
from wire.example import Example, num_features_of
from wire.example_codec import LAYOUT, MAGIC, decode_example
from wire.thinned_log import is_told

log = structlog.get_logger("wire")


class ExampleReader:
    """Decodes the records of one topic. ``columns``: how many features every interaction and every user has; None if
    that is not known (yet)."""

    def __init__(self, topic: str, columns: tuple[int, int] | None = None) -> None:
        self.topic, self.columns = topic, columns
        self.num_foreign = 0

    def read(self, partition: int, offset: int, value: bytes | None) -> Example | None:
        """The example, or None for anything else. Raises `CodecError` for another layout."""
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
        columns = num_features_of(example.rows), len(example.user_feature_hash)
        if len(example.rows) and self.columns not in (None, columns):
            self._skip(partition, offset, f"expected {self.columns} features of items and users, got {columns}")
            return None
        return example

    def _skip(self, partition: int, offset: int, why: str) -> None:
        self.num_foreign += 1
        if is_told(self.num_foreign):
            log.warning(
                "skipped a foreign record; find out who writes to the topic", topic=self.topic, partition=partition,
                offset=offset, why=why, num_so_far=self.num_foreign,
            )  # fmt: skip
