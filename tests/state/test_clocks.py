"""Whatever the clocks of machines and producers say, no user is due who has acted lately."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from state import day_store
from state.day_store import MANY
from state.store import PartitionStore, Record
from tests.state.days import TODAY, USERS, examples, lagging, of_an_earlier_build, opened, quiet, visits
from wire.example import Example
from wire.moment import MS_PER_DAY


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("is_migrated", [False, True])
def test_a_burst_ahead_and_a_record_of_long_ago_make_nobody_due_who_was_not(
    is_migrated: bool, is_restarted: bool, tmp_path: Path
) -> None:
    """One producer is days ahead, another one has come late: users whose own day is not known stay as they were."""
    if is_migrated:
        told = examples(opened(tmp_path / "before", visits(0, TODAY - 1, *USERS)))
        store = opened(tmp_path)
        store.restore([replace(each, user_offset=-1, num_new=0, resume_from_offset=0) for each in told])
    else:
        store = of_an_earlier_build(tmp_path, visits(0, TODAY - 1, *USERS))
    log = [
        visits(100, TODAY - 60, num=1),
        visits(101, TODAY),
        visits(300, TODAY + 3, num=199),
        lagging(visits(600, TODAY), TODAY - 900),
        visits(700, TODAY),
        visits(800, TODAY),
    ]
    for records in log:
        for record in records:
            store.apply([record])
        assert quiet(store, 1) == set()
        if is_restarted:
            store.close()
            store = opened(tmp_path)
    store.close()


def test_days_that_lie_ahead_make_nobody_a_user_of_the_past(tmp_path: Path) -> None:
    """Under producers' clocks: one of them is a year ahead of a log of years ago, or of now, or all are."""
    for number, (day, ahead) in enumerate([(TODAY - 900, 365), (TODAY, 365), (TODAY + 365, 0)]):
        log = [visits(0, day, "a"), *(visits(100 * k, day, num=100, ahead=ahead) for k in range(1, 5))]
        store = opened(tmp_path / str(number), *log)
        assert quiet(store, 1) == set()
        assert store.days.today == min(day, TODAY)
        store.close()


WHILE_BEHIND = {
    "many": visits(0, TODAY, *USERS),
    "few": visits(0, TODAY, *USERS, num=60),
    "one lags": lagging(visits(0, TODAY, *USERS), TODAY - 5),
    "many lag": [*visits(0, TODAY, *USERS, num=60), *visits(60, TODAY - 100)],
    "one is of 1970": lagging(visits(0, TODAY, *USERS), 0),
}
ONCE_RIGHT = {
    "all": visits(200, TODAY),
    "one lags": lagging(visits(200, TODAY), TODAY - 900),
    "one is ahead": lagging(visits(200, TODAY), TODAY + 3),
}


@pytest.mark.parametrize(
    ("is_restored", "between"), [(False, "nothing"), (False, "a restart"), (False, "a restore"), (True, "a restart")]
)
@pytest.mark.parametrize("behind", [3, 20_000])
@pytest.mark.parametrize("then", ONCE_RIGHT)
@pytest.mark.parametrize("first", WHILE_BEHIND)
def test_a_machine_whose_clock_was_behind_makes_nobody_due(
    first: str, then: str, behind: int, is_restored: bool, between: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As one that starts in 1970, or where it was switched off, until it has heard the time."""
    now = TODAY - behind
    monkeypatch.setattr(day_store, "_machine_day", lambda: now)
    if is_restored:
        told = examples(opened(tmp_path / "before", WHILE_BEHIND[first]))
        store = opened(tmp_path)
        store.restore(told)
    else:
        store = opened(tmp_path)
        for at in range(0, len(WHILE_BEHIND[first]), 20):
            store.apply(WHILE_BEHIND[first][at : at + 20])
        told = examples(store)
    assert quiet(store, 1) == set()
    if between == "a restart":
        store.close()
        store = opened(tmp_path)
    elif between == "a restore":
        store.restore(told)
    now = TODAY
    log = [*ONCE_RIGHT[then], *visits(300, TODAY, num=2 * MANY)]
    for at in range(0, len(log), 20):
        store.apply(log[at : at + 20])
        assert quiet(store, 1) == set()
    now = TODAY + 9
    for first_offset in (500, 600):
        store.apply(visits(first_offset, TODAY + 2))
    assert quiet(store, 1) == {*USERS}
    store.close()


def test_late_records_that_agree_with_a_clock_that_is_behind_take_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = examples(opened(tmp_path / "before", visits(0, TODAY - 1, "a", "b")))
    store = opened(tmp_path)
    store.restore([replace(each, user_offset=-1, num_new=0, resume_from_offset=0) for each in told])
    with monkeypatch.context() as then:
        then.setattr(day_store, "_machine_day", lambda: TODAY - 20)
        for records in (visits(0, TODAY, num=1), visits(1, TODAY - 20)):
            store.apply(records)
    for first in (200, 300):
        store.apply(visits(first, TODAY))
        assert quiet(store, 5) == set()
    store.close()


def test_late_records_with_one_ahead_between_them_agree_with_no_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as then:
        then.setattr(day_store, "_machine_day", lambda: TODAY - 20)
        store = opened(
            tmp_path,
            visits(0, TODAY, num=1),
            visits(1, TODAY - 20, num=60),
            visits(61, TODAY, "a", num=1),
            visits(62, TODAY - 20, num=60),
        )
    for first in (200, 300):
        store.apply(visits(first, TODAY))
        assert quiet(store, 5) == set()
    store.close()


@pytest.mark.parametrize("behind", [0, 20_000])
def test_users_who_were_migrated_with_times_of_long_ago_count_from_when_they_came(
    behind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their actions were ratings of 1998, say; Kafka's time decides."""
    told = examples(opened(tmp_path / "before", visits(0, TODAY - 1, "a", "b")))
    old = (TODAY - 9_000) * MS_PER_DAY
    with monkeypatch.context() as then:
        then.setattr(day_store, "_machine_day", lambda: TODAY - behind)
        store = opened(tmp_path)
        moved = [replace(each, user_offset=-1, num_new=0, resume_from_offset=0, newest_event_ms=old) for each in told]
        store.restore([*moved[:-1], replace(moved[-1], newest_record_ms=old)])
    store.close()
    store = opened(tmp_path, visits(0, TODAY - 100, num=1), visits(1, TODAY, num=2 * MANY))
    assert quiet(store, 1) == set()
    monkeypatch.setattr(day_store, "_machine_day", lambda: TODAY + 9)
    for first in (201, 301):
        store.apply(visits(first, TODAY + 2))
    assert quiet(store, 1) == {"a", "b"}
    store.close()


NUM_DAYS = 10


@pytest.mark.parametrize("is_right", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_nobody_is_due_who_has_acted_lately_whatever_the_clocks_say(
    seed: int, is_right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines that are ahead or behind for some days, records that lag or are ahead, restarts and restores. If all
    clocks are right, all others are due."""
    rng, log, acted, now = random.Random(seed), _Log(), dict[str, int](), TODAY
    monkeypatch.setattr(day_store, "_machine_day", lambda: now)
    store, off, num_due = opened(tmp_path), 0, 0
    for day in range(TODAY - 50, TODAY + 1):
        if rng.random() < 0.3:
            off = 0 if is_right else rng.choice([0, 0, -1, -3, -20, -20_000, 1, 5, 40])
        now = day + off
        for number in range(rng.choice([3, 40, 130])):
            user = f"u{rng.randrange(60)}" if rng.random() < 0.2 and day < TODAY - 15 else f"daily{rng.randrange(3)}"
            is_wrong = number and not is_right and rng.random() < rng.choice([0, 0, 0.02])
            stated = day + rng.choice([-900, -30, -3, -1, 1, 3, 30]) * is_wrong
            log.add(user, stated)
            acted[user] = day
        restart = rng.random()
        if restart < 0.1:
            store.close()
            store = opened(tmp_path)
        elif restart < 0.2:
            store.restore(log.told)
        log.apply(store)
        due = quiet(store, NUM_DAYS)
        num_due += len(due)
        assert all(acted[user] < day - (NUM_DAYS - 2) for user in due)
    log.add_many(TODAY)
    log.apply(store)
    assert not is_right or quiet(store, NUM_DAYS) == {each for each, last in acted.items() if last < TODAY - NUM_DAYS}
    assert not is_right or num_due
    store.close()


class _Log:
    """A partition's records, and the examples that came of them."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self.told: list[Example] = []

    def add(self, user: str, stated: int) -> None:
        """A record that states this day."""
        number = len(self._records)
        action = {"user": user, "item": number, "action": "see", "timestamp": number}  # before any record's
        self._records.append((number, stated * MS_PER_DAY, None, json.dumps(action).encode()))

    def add_many(self, day: int) -> None:
        """Enough to make it today."""
        for _ in range(2 * MANY):
            self.add("daily0", day)

    def apply(self, store: PartitionStore) -> None:
        """What the store has not, ten at a time."""
        for at in range(store.next_offset, len(self._records), 10):
            store.apply(self._records[at : at + 10])
        known = self.told[-1].number if self.told else -1
        self.told += [each for each in examples(store) if each.number > known]
        store.ack(1 << 40)
