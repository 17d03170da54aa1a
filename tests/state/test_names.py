"""Each item's name is sent once a day, so that who has lost one, or never had it, gets it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rocksdict import WriteBatch

from kernels.sequences import Sequences
from state import name_store
from state.compiled import rules_of
from state.config import StoreConfig
from state.names import Names
from state.store import PartitionStore
from wire.config import ActionConfig, SequenceConfig
from wire.example import Example
from wire.example_codec import decode_example
from wire.hashing import item_hash
from wire.moment import MS_PER_DAY

ANY_TIME, NO_JOINS = ActionConfig(min_timestamp_ms=0), SequenceConfig(join_window_s=0.0)
BACKENDS = pytest.mark.parametrize("backend", ["cpp", "python"])
START_DAY, HOUR_MS = 20_000, 3_600_000


class Partition:
    """A store to which users' clicks are applied, and the topic that its examples are written to."""

    def __init__(self, path: Path, backend: str) -> None:
        self.store = PartitionStore.open(path, 0, ANY_TIME, NO_JOINS, StoreConfig(backend=backend))
        self.topic: list[tuple[bytes, Example]] = []
        self._offset = self.store.applied_offset + 1

    def click(self, day: int, *clicks: tuple[str, str]) -> list[str]:
        """Each user clicks on an item, in one batch; returns the names that were sent for that."""
        return self.click_on([day] * len(clicks), *clicks)

    def click_on(self, days: Iterable[int], *clicks: tuple[str, str]) -> list[str]:
        """The same, each click on a day of its own."""
        records = []
        for day, (user, item) in zip(days, clicks, strict=True):
            record_ms = (START_DAY + day) * MS_PER_DAY + HOUR_MS + self._offset
            fields = {"user": user, "item": item, "action": "click", "timestamp": record_ms}
            records.append((self._offset, record_ms, user.encode(), json.dumps(fields).encode()))
            self._offset += 1
        self.store.apply(records)
        entries = self.store.outbox()
        examples = [decode_example(entry.value or b"") for entry in entries]
        self.topic += [(entry.key, example) for entry, example in zip(entries, examples, strict=True)]
        self.store.ack(entries[-1].index)
        return sorted(str(name) for example in examples for name in example.names.values())

    @property
    def num_stored(self) -> int:
        """How many names the database has."""
        return sum(1 for _ in self.store._db.under(b"n"))

    def compacted(self, day: int) -> Iterator[Example]:
        """The topic after compaction, which keeps what was written on ``day``."""
        last = {key: number for number, (key, _) in enumerate(self.topic)}
        for number, (key, example) in enumerate(self.topic):
            if last[key] == number or example.newest_record_ms >= (START_DAY + day) * MS_PER_DAY:
                yield example


@contextmanager
def partition(path: Path, backend: str) -> Iterator[Partition]:
    made = Partition(path, backend)
    try:
        yield made
    finally:
        made.store.close()


@BACKENDS
def test_a_name_is_sent_once_a_day(backend: str, tmp_path: Path) -> None:
    with partition(tmp_path, backend) as ours:
        assert ours.click(0, ("u", "a"), ("v", "a"), ("v", "b")) == ["a", "b"]
        assert ours.click(0, ("v", "a"), ("u", "c")) == ["c"]
        assert ours.click(1, ("v", "a"), ("u", "b"), ("u", "a")) == ["a", "b"]
        assert ours.click(1, ("w", "b"), ("w", "c")) == ["c"]
    with partition(tmp_path, backend) as ours:  # another process knows what this one has sent
        assert ours.click(1, ("v", "a"), ("w", "c")) == []
        assert ours.click(2, ("v", "a")) == ["a"]


@BACKENDS
def test_a_store_of_a_build_that_sent_names_once_sends_them_again(backend: str, tmp_path: Path) -> None:
    with partition(tmp_path, backend) as ours:
        batch = WriteBatch(raw_mode=True)
        for item in ("a", "b"):
            batch.put(b"n" + item_hash(item).to_bytes(8, "big", signed=True), b"")
        ours.store._db.write(batch)
        assert ours.click(0, ("u", "a")) == ["a"]
        assert ours.click(0, ("v", "a")) == []
        assert ours.num_stored == 1, "what was sent on an unknown day is removed"


@BACKENDS
def test_records_that_go_back_over_midnight_do_not_send_names_again(backend: str, tmp_path: Path) -> None:
    with partition(tmp_path, backend) as ours:
        assert ours.click(1, ("u", "a")) == ["a"]
        assert [ours.click(day, ("u", "a")) for day in (0, 1, 0, 1)] == [[], [], [], []]


@BACKENDS
def test_a_batch_sends_names_again_for_each_day_of_its_records(backend: str, tmp_path: Path) -> None:
    with partition(tmp_path, backend) as ours:
        clicks = [(f"u{user}", "a") for user in range(6)]
        assert ours.click_on([0, 0, 1, 1, 2, 0], *clicks) == ["a", "a", "a"]
        assert ours.click(2, ("v", "a")) == []
        assert [example.newest_record_ms // MS_PER_DAY - START_DAY for _, example in ours.topic if example.names] == [
            0, 1, 2
        ]  # fmt: skip


@BACKENDS
def test_a_backfill_beside_live_records_does_not_send_names_again(backend: str, tmp_path: Path) -> None:
    with partition(tmp_path, backend) as ours:
        assert ours.click_on([100], ("u", "a")) == ["a"]
        assert ours.click_on([10, 100, 20, 100, 30], *[(f"u{user}", "a") for user in range(5)]) == []
        assert ours.click(40, ("v", "a"), ("v", "b")) == ["b"]


@BACKENDS
def test_a_record_from_the_future_does_not_end_the_days(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Names, "MAX_EARLIER", 3)
    with partition(tmp_path, backend) as ours:
        assert ours.click(10_000, ("u", "a")) == ["a"]
        assert [ours.click(0, ("u", "a")) for _ in range(4)] == [[], [], ["a"], []]
        assert ours.click(1, ("u", "a")) == ["a"]


@BACKENDS
def test_names_of_past_days_are_removed_from_the_disk(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_store, "SWEPT", 7)
    with partition(tmp_path, backend) as ours:
        for day in range(12):
            for batch in range(10):
                ours.click(day, *((f"u{user}", f"item {day} {batch} {user}") for user in range(4)))
            assert ours.num_stored <= 3 * 40, "those of today and yesterday, and what is not swept yet"


def test_tombstones_of_names_do_not_gather_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_store, "MANY_REMOVED", 5)
    with partition(tmp_path, "cpp") as ours:
        for day in range(12):
            for batch in range(3):
                ours.click(day, *((f"u{user}", f"item {day} {batch} {user}") for user in range(40)))
        num = ours.store._db._live().property_int_value("rocksdb.num-deletes-active-mem-table")
    assert num is not None
    assert num < 3 * 240, "of names and of the outbox, of three days; without flushes, of twelve"


def test_whoever_reads_a_compacted_topic_knows_the_names_of_what_is_current(tmp_path: Path) -> None:
    assert missing_after_compaction(tmp_path) == set()


def test_names_that_are_sent_once_are_lost_to_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken build that the test above is for."""
    day_of: Callable[[Names, int], int] = lambda self, record_ms: START_DAY  # noqa: E731
    monkeypatch.setattr(Names, "day_of", day_of)
    assert missing_after_compaction(tmp_path)


def missing_after_compaction(path: Path) -> set[str]:
    """Items of the last day whose names a new reader of the topic does not find."""
    with partition(path, "python") as ours:
        for day in range(3):
            for at in range(40):
                ours.click(day, ("u", f"item {at}"))
        found = {str(name) for example in ours.compacted(2) for name in example.names.values()}
    return {f"item {at}" for at in range(40)} - found


def test_a_day_with_many_names_ends_in_no_time() -> None:
    """All of them are forgotten before the first batch of the next day, and their memory is given back by and by."""
    sequences, items = Sequences(rules_of(ANY_TIME, NO_JOINS, 0, None)), [item_hash(n) for n in range(200_000)]
    learning_s, forgetting_s = list[float](), list[float]()
    for _ in range(5):
        began_s = time.perf_counter()
        sequences.know(items)
        known_s = time.perf_counter()
        sequences.settle(0, 0)
        learning_s.append(known_s - began_s)
        forgetting_s.append(time.perf_counter() - known_s)
        for _ in range(70):
            sequences.settle(0, 1)
    assert min(forgetting_s) < 0.01 * min(learning_s)
