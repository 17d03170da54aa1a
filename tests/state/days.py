"""A partition's days in a test: records of a day, and which users are due."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from state.day_store import MANY
from state.store import PartitionStore, Record
from tests.state.world import ACTION
from wire.example import Example
from wire.example_codec import decode_example
from wire.moment import MS_PER_DAY

TODAY = time.time_ns() // 1_000_000 // MS_PER_DAY


def visits(first: int, day: int, *users: str, num: int = MANY, ahead: int = 0) -> list[Record]:
    """Records of a day, of which the first ones are these users', and all others somebody's. ``ahead``: of every tenth
    record, days after this one."""
    log: list[Record] = []
    for number in range(num):
        record_ms = (day + ahead * (number % 10 == 9)) * MS_PER_DAY + number
        user = users[number] if number < len(users) else "regular"
        action = {"user": user, "item": number, "action": "see", "timestamp": record_ms}
        log.append((first + number, record_ms, None, json.dumps(action).encode()))
    return log


def quiet(store: PartitionStore, num_days: int) -> set[str]:
    """The users who are due, looked for in small steps."""
    before, found, place = store.days.quiet_before(num_days), set[str](), b""
    while before is not None:
        names, place = store.users.quiet(place, 2, before)
        found |= set(names)
        if not place:
            break
    return found


def opened(folder: Path, *days: Iterable[Record]) -> PartitionStore:
    """With these records applied one by one, as where few come."""
    store = PartitionStore.open(folder / "db", 0, ACTION)
    for records in days:
        for record in records:
            store.apply([record])
    return store


def examples(store: PartitionStore) -> list[Example]:
    return [decode_example(entry.value) for entry in store.outbox(limit=10_000) if entry.value is not None]


def of_an_earlier_build(folder: Path, *days: Iterable[Record]) -> PartitionStore:
    """A store that has users, and no days."""
    store = opened(folder, *days)
    for key, _ in list(store._db.under(b"d")):
        assert store._db._db is not None
        del store._db._db[key]
    store.close()
    return opened(folder)


def lagging(records: list[Record], day: int) -> list[Record]:
    """The same, but the one in the middle states this day."""
    middle = len(records) // 2
    (record,) = visits(records[middle][0], day, num=1)
    return [*records[:middle], record, *records[middle + 1 :]]


USERS = [f"u{number}" for number in range(50)]
