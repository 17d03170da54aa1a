"""At which offset of the actions each day began: what tells how long ago a user last acted, whose last offset is known.

Key: d <day:4>, big-endian. Value: the offset, eight bytes, big-endian. A day is the number of days since 1970. Under d
alone, four bytes: the day as of which users count of whom no day is known. Of a store that an earlier build made, that
is the machine's when this one opened it first; of users who were migrated (`headrace repartition`), that of the newest
of their actions; after this machine's clock was behind, that on which it no longer was.

A day is one of Kafka's timestamps, which under producers' clocks may state any time. So a day begins with the first
record that states it or a later one: whoever acts after that has acted on that day or later, and who acted before has
not, unless their clocks were behind. Records that lie ahead have days begin early, and then users stay longer. And
today is a day only when `MANY` records in a row are of that day or a later one: a few ahead make nobody a user who has
not come for long. No day is later than this machine's. If `MANY` in a row are, by more than one, its clock is behind;
then all users count as of the day on which it has caught up. What comes of it is decided once, by a request in the
actions topic (`stream.retention`), so nothing here has to be the same in every life.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rocksdict import WriteBatch

from state.database import Database
from state.user_store import USERS
from wire.example import Example
from wire.moment import MS_PER_DAY

_PREFIX = b"d"
MANY = 100
"""As many records in a row make a day today."""
NOT_YET = (1 << 32) - 1
"""In place of a day that is known once this machine's clock is right."""
MOST_WHOLE = 10_000
"""Of so many users a restore waits for what follows a whole segment: 250 bytes each."""


class DayStore:
    """The days of one partition. The owner writes nothing else under their keys."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._begins: dict[int, int] = {}
        """Day → the first offset of its actions, or of a record before them that states it."""
        self._fresh: dict[int, int] = {}
        """Those among them that are not on disk."""
        self._since = -1
        """The day as of which users count who have no offset or no day here; -1 if there are none."""
        self.today = -1
        """The day of the last records; -1 before there are enough."""
        self._earliest = self._num = 0
        """Of the records since ``today`` was set: the earliest day, and how many there are."""
        self._whole: dict[str, tuple[int, int]] = {}
        """User → day and offset of the user's last adopted example, if it is a whole segment without anything new."""

    def load(self) -> None:
        """Read what is stored."""
        stored = dict(self._db.under(_PREFIX))
        self._since = int.from_bytes(stored.pop(_PREFIX, b""), "big") or -1
        self._begins = {int.from_bytes(key[1:], "big"): int.from_bytes(begin, "big") for key, begin in stored.items()}
        self._fresh.clear()
        self._whole.clear()
        self.today, self._num = -1, 0
        if self._since < 0 and not self._begins and any(True for _ in self._db.under(USERS)):
            self._since = _machine_day()

    def note(self, records: Sequence[tuple[int, int, bytes | None, bytes | None]]) -> None:
        """The next records (`state.store.Record`), about to be applied."""
        if not records:
            return
        times = [record[1] for record in records]
        newest = max(self._begins, default=-1)
        if max(times) // MS_PER_DAY > newest:
            self._begin_days(records, newest)
        self._look(min(times) // MS_PER_DAY, len(records))

    def _look(self, earliest: int, num: int) -> None:
        """The next records, of which this is the earliest day: `MANY` make it today, or show that this machine's clock
        is behind."""
        self._earliest = min(self._earliest, earliest) if self._num else earliest
        self._num += num
        if self._num < MANY:
            return
        self.today, self._num = _known(self._earliest), 0
        before = self._since
        if self._earliest > _machine_day() + 1:
            self._since = NOT_YET
        elif before == NOT_YET:
            self._since = self.today
        if self._since != before:
            self.save()

    def _begin_days(self, records: Sequence[tuple[int, int, bytes | None, bytes | None]], newest: int) -> None:
        for offset, record_ms, *_ in records:
            if (day := record_ms // MS_PER_DAY) > newest and (day := _known(day)) > newest:
                self._begins[day] = self._fresh[day] = offset
                newest = day
        if self._fresh:
            self.save()

    def adopt(self, example: Example) -> None:
        """The next example from which the store is restored; `save_adopted` comes after the last one.

        A whole segment without anything new states the time when it was written again. If another example of its user
        follows, as where it was written because the user went on, that one counts. Otherwise, and beyond `MOST_WHOLE`
        such users, the segment does: users who acted between its user's last action and that time stay longer.
        """
        self._look(example.newest_record_ms // MS_PER_DAY, 1)
        if example.is_migrated:  # its user has no offset here
            self._since = max(self._since, _known(example.newest_event_ms // MS_PER_DAY))
            return
        begin = _known(example.newest_record_ms // MS_PER_DAY), example.user_offset
        self._whole.pop(example.user, None)
        if len(example.rows) < example.segment_len or example.num_new or example.num_feedback:
            self._begin_by(*begin)
            return
        self._whole[example.user] = begin
        if len(self._whole) > MOST_WHOLE:
            self._begin_by(*self._whole.pop(next(iter(self._whole))))

    def _begin_by(self, day: int, offset: int) -> None:
        self._begins[day] = self._fresh[day] = min(offset, self._begins.get(day, offset))

    def save_adopted(self) -> None:
        """Write what the adopted examples say."""
        for begin in self._whole.values():
            self._begin_by(*begin)
        self._whole.clear()
        self.today, self._num = -1, 0
        self.save()

    def save(self) -> None:
        """Write what is not on disk."""
        batch = WriteBatch(raw_mode=True)
        for day, begin in self._fresh.items():
            batch.put(_PREFIX + day.to_bytes(4, "big"), begin.to_bytes(8, "big"))
        if self._since >= 0:
            batch.put(_PREFIX, self._since.to_bytes(4, "big"))
        self._fresh.clear()
        self._db.write(batch)

    def quiet_before(self, num_days: int) -> int | None:
        """The offset before which a user's last action must be for as many whole days to have passed since; None if it
        is not known of anybody that they have. What came before the first known day counts as of that day, or as of
        the one stored for that, since the first record may state any day."""
        due = self.today - num_days
        if self.today < 0 or max(self._since, min(self._begins, default=due)) >= due:
            return None
        return min((begin for day, begin in self._begins.items() if day >= due), default=None)


def _known(day: int) -> int:
    return max(0, min(day, _machine_day()))


def _machine_day() -> int:
    return time.time_ns() // 1_000_000 // MS_PER_DAY
