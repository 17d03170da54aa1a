"""By when users last acted: what a partition knows of its days, and which of its users are due."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from state import day_store
from state.day_store import MANY
from tests.state.days import TODAY, examples, of_an_earlier_build, opened, quiet, visits
from wire.config import SequenceConfig
from wire.moment import MS_PER_DAY


def test_who_has_not_acted_for_so_many_whole_days_is_due(tmp_path: Path) -> None:
    store = opened(
        tmp_path,
        visits(0, TODAY - 40, "a", "b", "c"),
        visits(100, TODAY - 31, "b"),
        visits(200, TODAY - 30, "c"),
        visits(300, TODAY),
    )
    assert quiet(store, 30) == {"a", "b"}
    assert quiet(store, 31) == {"a"}
    assert quiet(store, 39) == {"a"}
    assert quiet(store, 40) == set()
    store.close()


def test_who_acts_first_on_a_day_has_acted_on_it(tmp_path: Path) -> None:
    """However many records the day before has: the last of them and the first of the day are counted together."""
    old = [f"old{number}" for number in range(MANY + 10)]
    new = [f"new{number}" for number in range(2 * MANY)]
    store = opened(tmp_path, visits(0, TODAY - 40, *old, num=len(old)), visits(len(old), TODAY, *new, num=len(new)))
    assert quiet(store, 30) == set(old)
    store.close()


def test_a_clock_that_is_behind_for_ever_makes_nobody_else_due(tmp_path: Path) -> None:
    """One record in ten, so that there are never `MANY` in a row of the day."""
    log = [visits(100 * k, TODAY - 40 + k, f"u{k}", ahead=-70 if k else 0) for k in range(41)]
    store = opened(tmp_path, *log)
    assert store.days.today == TODAY - 70
    store.apply(visits(4100, TODAY))
    assert quiet(store, 30) == {f"u{k}" for k in range(10)}
    store.close()


def test_a_store_that_is_opened_again_knows_its_days_and_waits_for_todays_records(tmp_path: Path) -> None:
    opened(tmp_path, visits(0, TODAY - 40, "a"), visits(100, TODAY)).close()
    store = opened(tmp_path)
    assert quiet(store, 30) == set()
    store.apply(visits(200, TODAY, num=MANY - 1))
    assert quiet(store, 30) == set()
    store.apply(visits(300, TODAY, num=1))
    assert quiet(store, 30) == {"a"}
    store.close()


@pytest.mark.parametrize("stated", [20, 60])
def test_a_store_of_an_earlier_build_counts_from_its_first_day_here(
    stated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has users, and no days. Its first record may state any day."""
    with monkeypatch.context() as then:
        then.setattr(day_store, "_machine_day", lambda: TODAY - 20)
        store = of_an_earlier_build(tmp_path, visits(0, TODAY - 90, "a"))
        for records in (visits(100, TODAY - stated, num=1), visits(101, TODAY - 20, "b")):
            for record in records:
                store.apply([record])
    store.close()
    store = opened(tmp_path, visits(201, TODAY))
    assert quiet(store, 30) == set()
    assert quiet(store, 20) == set()
    assert quiet(store, 19) == {"a", "b"}
    store.close()


def test_days_of_the_past_make_nobody_due(tmp_path: Path) -> None:
    """A backfill of actions with their own times, between those of today: whoever came with it has just come."""
    store = opened(tmp_path, visits(0, TODAY, "a"), visits(100, TODAY - 900, "b"), visits(200, TODAY))
    assert quiet(store, 1) == set()
    store.close()


@pytest.mark.parametrize("num_kept", [1, 3])
def test_a_restored_store_knows_of_each_user_what_the_lost_one_knew(num_kept: int, tmp_path: Path) -> None:
    """From all examples, or from the last ones of each key; whatever is written again states another time."""
    days = [visits(100 * k, TODAY - 45 + k, f"u{k}", f"u{k // 2}") for k in range(45)]
    store = opened(tmp_path, *days, visits(4500, TODAY))
    told = examples(store)
    known = {num: quiet(store, num) for num in range(1, 50)}
    assert len(known[44]) < len(known[20]) < len(known[1])
    seal = next(each for each in told if len(each.rows) == each.segment_len and not each.num_new)
    again = replace(
        seal, number=told[-1].number + 1, newest_record_ms=TODAY * MS_PER_DAY,
        user_offset=max(each.user_offset for each in told if each.user == seal.user),
    )  # fmt: skip
    newest = {each.address: each for each in told} if num_kept == 1 else {each.number: each for each in told}
    store.restore([*sorted(newest.values(), key=lambda each: each.number), again])
    assert quiet(store, 1) == set(), "today is not known yet"
    store.close()
    store = opened(tmp_path, visits(5000, TODAY))
    for num, users in known.items():
        assert quiet(store, num) - {"regular"} == users, num
    store.close()


def test_users_who_were_migrated_count_from_the_newest_of_their_actions(tmp_path: Path) -> None:
    """They have no offsets here; and the first record of a producer's clock may state any day."""
    told = examples(opened(tmp_path / "before", visits(0, TODAY - 90, "a"), visits(100, TODAY - 20, "b")))
    store = opened(tmp_path)
    store.restore([replace(each, user_offset=-1, num_new=0, resume_from_offset=0) for each in told])
    store.close()
    store = opened(tmp_path, visits(0, TODAY - 100, num=1), visits(1, TODAY, num=2 * MANY))
    assert quiet(store, 30) == quiet(store, 20) == set()
    assert quiet(store, 19) == {"a", "b"}
    store.close()


@pytest.mark.parametrize("most_whole", [0, 10_000])
def test_who_acted_last_in_a_segment_that_is_written_again_is_not_due_too_early(
    most_whole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example that had the user's last action is compacted away by the one that is written again."""
    monkeypatch.setattr(day_store, "MOST_WHOLE", most_whole)
    length = SequenceConfig().segment_len
    store = opened(tmp_path, visits(0, TODAY - 60, "a"))
    store.apply(visits(100, TODAY - 3, *["u"] * length, num=length))
    store.apply(visits(200, TODAY, "b"))
    (last,) = (each.address for each in examples(store) if each.user == "u")
    assert store.refresh([last]) == 1
    newest = {each.address: each for each in examples(store)}
    store.restore(sorted(newest.values(), key=lambda each: each.number))
    for record in visits(300, TODAY):
        store.apply([record])
    assert quiet(store, 30) == {"a"}
    store.close()


def test_a_whole_segment_that_its_user_has_left_says_nothing_of_that_day(tmp_path: Path) -> None:
    """It is written when the user goes on, with the offset of the user's action before that, perhaps long ago."""
    length = SequenceConfig().segment_len
    store = opened(
        tmp_path,
        visits(0, TODAY - 80, *["u"] * (2 * length), num=2 * length),
        visits(100, TODAY - 60, "a"),
        visits(200, TODAY, "u"),
    )
    told = examples(store)
    assert any(each.user == "u" and len(each.rows) == length and not each.num_new for each in told)
    store.restore(told)
    for record in visits(300, TODAY):
        store.apply([record])
    assert quiet(store, 30) == {"a"}
    store.close()


@pytest.mark.parametrize("stored", [bytes([255] * 4), (TODAY + 400).to_bytes(4, "big") + b"\0"])
def test_a_day_of_the_future_that_a_store_has_noted_is_in_doubt(stored: bytes, tmp_path: Path) -> None:
    store = opened(tmp_path, visits(0, TODAY - 40, "a"))
    assert store._db._db is not None
    store._db._db[b"d"] = stored
    store.close()
    store = opened(tmp_path, visits(100, TODAY))
    assert quiet(store, 1) == set()
    assert not store.days._is_in_doubt
    assert store.days._since == TODAY
    store.close()
