"""How many versions the weights topic keeps: after each base, the trainer deletes the versions beyond that number.

Their age is bounded by the topic's retention (`KafkaConfig.weights_retention_s`). The newest two bases, with everything
that builds on them, are always kept, and so is the version that an operator has pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError

from wire.config import KafkaConfig
from wire.control import PIN_KEY, Pin, Which, decode_pin
from wire.errors import HeadraceError, VersionError, brief
from wire.kafka.admin import make_admin
from wire.kafka.consumer import read, reconnect, spans
from wire.topics import Topics
from wire.weights import Manifest

log = structlog.get_logger("trainer")
NUM_BASES = 2


class VersionKeeper:
    """Knows where the versions of the topic begin. For one thread. ``keep``: how many to keep; 0: all."""

    def __init__(self, kafka: KafkaConfig, keep: int) -> None:
        self._kafka, self._keep = kafka, keep
        self._topics = Topics.under(kafka.prefix, kafka.line)
        self._versions: list[tuple[Which, int]] = []
        """Versions in the order of the topic, and the offset of the base that each builds on."""
        self._trimmed = 0
        self._is_told = False

    def note(self, manifests: Sequence[Manifest]) -> None:
        """Note versions that the topic holds, after those noted before."""
        if self._keep:
            self._versions += [(each.which, each.base_offset) for each in manifests]

    def trim(self) -> None:
        """Delete what comes before the oldest version to keep. If the broker cannot, that is logged once."""
        if not self._keep:
            return
        try:
            offset = self.first_kept(self._pinned())
            if offset <= self._trimmed:
                return
            self._versions = [each for each in self._versions if each[1] >= offset]
            admin = make_admin(self._kafka)
            try:
                admin.delete_records({TopicPartition(self._topics.weights, 0): offset})
            finally:
                admin.close()
        except (KafkaError, HeadraceError, OSError) as error:
            if not self._is_told:
                log.warning("older versions could not be deleted, they stay until retention", error=brief(error))
            self._is_told = True
            return
        self._trimmed = offset
        log.info("older versions deleted", first_kept=self._versions[0][0], before_offset=offset)

    def first_kept(self, pin: Pin | None) -> int:
        """The offset before which nothing is needed."""
        bases = sorted({offset for _, offset in self._versions})
        if len(bases) <= NUM_BASES or len(self._versions) <= self._keep:
            return 0
        offset = min(self._versions[-self._keep][1], bases[-NUM_BASES])
        if pin is None or pin.line != self._kafka.line or pin.which > self._versions[-1][0]:
            return offset
        return min(offset, next((at for which, at in self._versions if which == pin.which), 0))

    def _pinned(self) -> Pin | None:
        """What is pinned, by the control topic. A deployment without that topic has no pins."""
        pin, consumer = None, reconnect(self._kafka)
        try:
            if self._topics.control not in consumer.topics():
                return None
            for record in read(consumer, self._topics.control, spans(consumer, self._topics.control)):
                if record.key == PIN_KEY:
                    with suppress(VersionError):  # somebody else's: servers skip it too
                        pin = decode_pin(record.value) if record.value else None
        finally:
            consumer.close()
        return pin
