"""At which offset of the actions each day began: what tells how long ago a user last acted, whose last offset is known.

Key: d <day:4>, big-endian. Value: the offset, eight bytes, big-endian. A day is the number of days since 1970. Under d
alone, five bytes: a day as of which, at the earliest, all users count who came before it was written; and 1 if they
count as of a later one that is not known yet, 0 if not. That day only grows.

A day is one of Kafka's timestamps, which under producers' clocks may state any time. So a day begins with the first
record that states it or a later one: whoever acts after that has acted on that day or later, and who acted before has
not, unless their clocks were behind. Records that lie ahead have days begin early, and then users stay longer. And
today is a day only when `MANY` records in a row are of that day or a later one: a few ahead make nobody a user who has
not come for long. Today is never later than this machine's day.

A record of more than a day after this machine's is of a clock that is ahead, or this machine's is behind; which of the
two, nothing here can tell. So it begins no day, and from then on nobody is due. That ends when `MANY` records in a row
are of this machine's day, or of one beside it: then all users before count as of that day. The same holds for the users
in a store of an earlier build, which has no days. Users who were migrated (`headrace repartition`) have no offsets
here, and count as of the newest of their actions and records. Whatever is in doubt keeps users for longer. What comes
of it is decided once, by a request in the actions topic (`stream.retention`), so nothing here has to be the same in
every life.
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
        self._since = 0
        """The day as of which users count at the earliest who came before it was set. It only grows."""
        self._is_in_doubt = False
        """Whether they count as of a later day, which is not known yet."""
        self._num_agreed = 0
        """As many of the last records, in a row, are of this machine's day or one beside it; counted while in doubt."""
        self.today = -1
        """The day of the last records; -1 before there are enough."""
        self._earliest = self._num = 0
        """Of the records since ``today`` was set: the earliest day, and how many there are."""
        self._whole: dict[str, tuple[int, int]] = {}
        """User → day and offset of the user's last adopted example, if it is a whole segment without anything new."""

    def load(self) -> None:
        """Read what is stored."""
        stored = dict(self._db.under(_PREFIX))
        since = stored.pop(_PREFIX, bytes(5))
        self._since, self._is_in_doubt = int.from_bytes(since[:4], "big"), any(since[4:])
        if self._since > _machine_day() + 1:  # noted while this machine's clock was ahead, or damaged
            self._since, self._is_in_doubt = 0, True
        self._begins = {int.from_bytes(key[1:], "big"): int.from_bytes(begin, "big") for key, begin in stored.items()}
        self._fresh.clear()
        self._whole.clear()
        self.today, self._num, self._num_agreed = -1, 0, 0
        if not (self._begins or self._since) and any(True for _ in self._db.under(USERS)):
            self._is_in_doubt = True

    def note(self, records: Sequence[tuple[int, int, bytes | None, bytes | None]]) -> None:
        """The next records (`state.store.Record`), about to be applied. What they say is on disk before they are."""
        if not records:
            return
        times, machine_day = [record[1] for record in records], _machine_day()
        before = self._since, self._is_in_doubt
        latest = max(times) // MS_PER_DAY
        if latest > (newest := max(self._begins, default=-1)):
            self._begin_days(records, newest, machine_day)
        self._look(min(times) // MS_PER_DAY, len(times), machine_day)
        if latest > machine_day + 1:
            self._is_in_doubt, self._num_agreed = True, 0
        elif self._is_in_doubt:
            self._settle(times, machine_day)
        if self._fresh or (self._since, self._is_in_doubt) != before:
            self.save()

    def _begin_days(
        self, records: Sequence[tuple[int, int, bytes | None, bytes | None]], newest: int, machine_day: int
    ) -> None:
        for offset, record_ms, *_ in records:
            if newest < (day := record_ms // MS_PER_DAY) <= machine_day + 1:
                self._begins[day] = self._fresh[day] = offset
                newest = day

    def _look(self, earliest: int, num: int, machine_day: int) -> None:
        """So many next records, of which this is the earliest day: `MANY` make it today."""
        self._earliest = min(self._earliest, earliest) if self._num else earliest
        self._num += num
        if self._num >= MANY:
            self.today, self._num = max(0, min(self._earliest, machine_day)), 0

    def _settle(self, times: Sequence[int], machine_day: int) -> None:
        """End the doubt if the clocks agree."""
        for record_ms in times:
            agrees = abs(record_ms // MS_PER_DAY - machine_day) <= 1
            self._num_agreed = self._num_agreed + 1 if agrees else 0
            if self._num_agreed >= MANY:
                self._since, self._is_in_doubt = max(self._since, machine_day), False
                return

    def adopt(self, example: Example) -> None:
        """The next example from which the store is restored; `save_adopted` comes after the last one.

        A whole segment without anything new states the time when it was written again. If another example of its user
        follows, as where it was written because the user went on, that one counts. Otherwise, and beyond `MOST_WHOLE`
        such users, the segment does: users who acted between its user's last action and that time stay longer.
        """
        newest_ms = max(example.newest_record_ms, example.newest_event_ms if example.is_migrated else 0)
        day = newest_ms // MS_PER_DAY
        if not 0 < day <= _machine_day() + 1:
            self._is_in_doubt = True
            return
        if example.is_migrated:  # its user has no offset here
            self._since = max(self._since, day)
            return
        begin = day, example.user_offset
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
        batch.put(_PREFIX, self._since.to_bytes(4, "big") + bytes((self._is_in_doubt,)))
        self._fresh.clear()
        self._db.write(batch)

    def quiet_before(self, num_days: int) -> int | None:
        """The offset before which a user's last action must be for as many whole days to have passed since; None if it
        is not known of anybody that they have. What came before the first known day counts as of that day, or as of
        the one stored for that, since the first record may state any day."""
        due = self.today - num_days
        if self.today < 0 or self._is_in_doubt or max(self._since, min(self._begins, default=due)) >= due:
            return None
        return min((begin for day, begin in self._begins.items() if day >= due), default=None)


def _machine_day() -> int:
    return time.time_ns() // 1_000_000 // MS_PER_DAY
