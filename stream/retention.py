"""Finds a partition's users who have not acted for `sequence.forget_after_days`, and asks that they be forgotten.

It asks as `headrace forget user` does: by a request in the actions topic, which the partition's worker carries out at
its offset. So a crash, a restore, a replay or another worker changes nothing, and the audit recounts it. A request
names the users and the offset before which their last actions must stand, so whoever acts before it is carried out
stays.

Once a day all users are looked at, some of them each second (`Retention.step`). What a killed worker has not asked, the
next one does: it begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from state.store import PartitionStore
from stream.config import Settings
from stream.kafka_producer import Producer
from wire.topics import Topics

LOOKED_AT = 1_000
"""Users in a step: a few milliseconds at most; 86 million a day."""
MOST = 300
"""Users in a request. A mark ends a trainer's step, so a request for each user would cut its steps short."""
MOST_BYTES = 20_000


class Retention:
    """The quiet users of one partition. `step` is called once a second, while the partition is claimed."""

    def __init__(self, partition: int, settings: Settings, producer: Producer) -> None:
        self._partition, self._producer = partition, producer
        self._num_days = settings.sequence.forget_after_days
        self._topic = Topics.under(settings.kafka.prefix).actions
        self._most_bytes = min(MOST_BYTES, settings.action.max_record_bytes // 2)
        self._before: int | None = None
        """What the last actions of those stand before who are found in this round, or were in the last one."""
        self._place = b""
        self._is_looking = False
        self._found: list[str] = []
        self._asked_at = -1
        """The offset of the last request."""

    async def step(self, store: PartitionStore) -> None:
        """Look at some users, and ask that those found be forgotten, once they are many or the last. The next step does
        nothing before that is carried out. Raises what the producer raises; then the next step asks again."""
        if not self._num_days or store.applied_offset < self._asked_at:
            return
        before = store.days.quiet_before(self._num_days)
        if before is None:  # nobody is due, or nobody any more: a clock is in doubt
            self._found, self._before, self._is_looking = [], None, False
            return
        if len(self._found) < MOST:
            self._look(store, before)
        if self._found and (len(self._found) >= MOST or not self._is_looking):
            await self._ask()

    def _look(self, store: PartitionStore, before: int) -> None:
        if not self._is_looking:
            if before == self._before or self._found:
                return
            self._before, self._place, self._is_looking = before, b"", True
        assert self._before is not None
        found, self._place = store.users.quiet(self._place, LOOKED_AT, self._before)
        self._found += found
        self._is_looking = bool(self._place)

    async def _ask(self) -> None:
        users = together(self._found, self._most_bytes)
        value = msgspec.json.encode({"forget": True, "users": users, "before_offset": self._before})
        sent = await self._producer.send(self._topic, self._partition, users[0].encode(), value)
        self._asked_at = (await sent).offset
        del self._found[: len(users)]


def together(users: Sequence[str], most_bytes: int) -> Sequence[str]:
    """The first of these users, as many as a request names: at most `MOST`, and ``most_bytes`` of JSON unless it is one
    user."""
    num_bytes = 0
    for num, user in enumerate(users[:MOST]):
        num_bytes += len(msgspec.json.encode(user)) + 1
        if num and num_bytes > most_bytes:
            return users[:num]
    return users[:MOST]
