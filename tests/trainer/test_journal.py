"""The journal: steps recorded before they were trained, up to a torn tail; and the plan made from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.samples import columns, example
from trainer.checkpoint.journal import Journal, encode_line, journal_starts, read_journal
from trainer.checkpoint.plan import Plan
from trainer.errors import GapError, JournalError
from trainer.sources.scheduler import Scheduler, ranges
from wire.example import Example
from wire.weights import PlanStep


def step(number: int) -> PlanStep:
    return [(0, 2 * number, 2 * number + 1), (3, number, number)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal in an empty folder."""
    made = Journal(tmp_path)
    yield made
    made.close()


def record(journal: Journal, first: int, last: int) -> None:
    for number in range(first, last):
        journal.append(number, step(number))


@pytest.mark.parametrize("fsync", [False, True])
def test_what_was_recorded_is_read(tmp_path: Path, fsync: bool) -> None:
    journal = Journal(tmp_path, fsync=fsync)
    journal.start(3)
    record(journal, 3, 9)
    assert read_journal(tmp_path, 3).steps == [step(number) for number in range(3, 9)]
    assert read_journal(tmp_path, 7).steps == [step(7), step(8)]
    assert read_journal(tmp_path, 9).steps == []
    assert read_journal(tmp_path, 2).steps == []
    journal.close()


def test_a_torn_tail_is_dropped_wherever_it_tears(journal: Journal, tmp_path: Path) -> None:
    journal.start(0)
    record(journal, 0, 3)
    path = tmp_path / "journal-000000000000"
    content = path.read_bytes()
    last = len(encode_line(2, step(2)))
    for torn in range(1, last + 1):
        path.write_bytes(content[:-torn])
        assert read_journal(tmp_path, 0).steps == [step(0), step(1), step(2)][: 3 if torn == 1 else 2]


def test_nothing_behind_a_damaged_line_counts(journal: Journal, tmp_path: Path) -> None:
    journal.start(0)
    record(journal, 0, 5)
    path = tmp_path / "journal-000000000000"
    content = bytearray(path.read_bytes())
    content[content.index(b"[2,") + 5] ^= 1
    path.write_bytes(content)
    assert read_journal(tmp_path, 0).steps == [step(0), step(1)]


def test_steps_go_on_over_the_files_of_several_checkpoints(journal: Journal, tmp_path: Path) -> None:
    journal.start(0)
    record(journal, 0, 4)
    journal.start(4)
    record(journal, 4, 7)
    journal.start(7)
    assert read_journal(tmp_path, 2).steps == [step(number) for number in range(2, 7)]
    journal.prune(4)
    assert sorted(journal_starts(tmp_path)) == [4, 7]
    assert read_journal(tmp_path, 4).steps == [step(4), step(5), step(6)]
    assert read_journal(tmp_path, 2).steps == []


def test_a_start_from_an_older_checkpoint_supersedes_the_files_behind_it(journal: Journal, tmp_path: Path) -> None:
    journal.start(0)
    record(journal, 0, 4)
    journal.start(4)
    record(journal, 4, 6)
    planned = read_journal(tmp_path, 2).steps
    journal.start(2, planned)
    assert sorted(journal_starts(tmp_path)) == [0, 2]
    journal.append(6, step(60))
    assert read_journal(tmp_path, 2).steps == [step(2), step(3), step(4), step(5), step(60)]


def test_a_later_decision_about_a_step_counts(journal: Journal, tmp_path: Path) -> None:
    journal.start(0)
    record(journal, 0, 4)
    journal.start(3)
    journal.append(3, step(30))
    assert read_journal(tmp_path, 0).steps[3] == step(30)


def test_a_journal_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(JournalError, match=r"cannot be written .*free some space or fix the permissions"):
        journal.append(0, step(0))
    with pytest.raises(JournalError, match=r"cannot be written .No such file or directory"):
        Journal(tmp_path / "missing").start(0)
    assert list(tmp_path.iterdir()) == []


# Batches, new and replayed


def arrived(partition: int, number: int, *, num_new: int = 2, record_ms: int = 0) -> Example:
    sealed = columns(np.random.default_rng(number), 4, 9)
    return replace(example(sealed, num_new, partition=partition, number=number), newest_record_ms=record_ms)


def numbers(examples: list[Example]) -> list[tuple[int, int]]:
    return [(each.partition, each.number) for each in examples]


def test_a_step_takes_the_oldest_first_up_to_its_budget() -> None:
    scheduler = Scheduler(max_context=10, max_tokens=10_000, max_targets=6)
    scheduler.add([arrived(0, 5, record_ms=10), arrived(0, 6, record_ms=30), arrived(1, 0, record_ms=20)])
    scheduler.add([arrived(1, 1, record_ms=40)])
    assert scheduler.oldest_record_ms() == {0: 10, 1: 20}
    cut = scheduler.next_batch()
    assert cut is not None
    assert cut[0] == [(0, 5, 6), (1, 0, 0)]
    assert numbers(cut[1]) == [(0, 5), (0, 6), (1, 0)]
    assert (scheduler.num_waiting, scheduler.num_targets) == (1, 2)
    assert scheduler.next_batch() is not None
    assert scheduler.next_batch() is None


def test_an_example_beyond_the_budget_is_a_step_of_its_own() -> None:
    scheduler = Scheduler(max_context=10, max_tokens=4, max_targets=100)
    scheduler.add([arrived(0, 0), arrived(0, 1)])
    sizes = []
    while (cut := scheduler.next_batch()) is not None:
        sizes.append(len(cut[1]))
    assert sizes == [1, 1]


@given(
    stream=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=30),
    budget=st.integers(1, 8),
)
@settings(max_examples=40, deadline=None)
def test_steps_that_are_followed_are_the_steps_that_were_cut(stream: list[tuple[int, int, int]], budget: int) -> None:
    scheduler, again, next_number = Scheduler(10, 10_000, budget), Scheduler(10, 10_000, 99), dict.fromkeys(range(3), 0)
    examples = []
    for partition, num_new, record_ms in stream:
        examples.append(arrived(partition, next_number[partition], num_new=num_new, record_ms=record_ms))
        next_number[partition] += 1
    scheduler.add(examples)
    cuts = []
    while (cut := scheduler.next_batch()) is not None:
        cuts.append(cut)
        assert len(cut[1]) == 1 or sum(each.num_new for each in cut[1]) <= budget
    assert sorted(numbers([each for _, step in cuts for each in step])) == sorted(numbers(examples))
    waiting = iter(examples)
    for plan, expected in cuts:
        while (followed := again.replay_batch(plan)) is None:
            again.add([next(waiting)])
        assert numbers(followed) == numbers(expected)
        assert ranges(followed) == plan


@pytest.mark.parametrize(
    ("waiting", "step", "got"),
    [
        ((5, 6), (0, 4, 5), "got 5 to 5:"),
        ((5, 9), (0, 5, 8), "got 5 to 5:"),
        ((5, 7, 8), (0, 5, 8), "got 5 to 5, 7 to 8:"),
        ((9,), (0, 5, 8), "got 9 next:"),
        ((4, 5, 6), (0, 5, 6), "got 4 to 6:"),
    ],
)
def test_a_recorded_step_whose_examples_are_not_all_there_is_a_gap(
    waiting: tuple[int, ...], step: tuple[int, int, int], got: str
) -> None:
    scheduler = Scheduler(10, 100, 100)
    scheduler.add([arrived(0, number) for number in waiting])
    with pytest.raises(GapError, match=f"expected examples {step[1]} to {step[2]} of partition 0, {got} .*published"):
        scheduler.replay_batch([step])


def test_what_was_published_counts_over_what_was_only_written_down() -> None:
    plan = Plan(4)
    plan.merge(4, [step(4), step(5), step(6)])
    plan.merge(3, [step(3), step(4), step(50), step(60)])
    assert plan.after(4) == [step(4), step(50), step(60)]
    plan.merge(4, [step(4)])  # the same step: those after it stay
    assert plan.after(5) == [step(50), step(60)]
    plan.merge(5, [step(5)])  # a different step: those after it do not
    assert (plan.after(4), plan.next_step) == ([step(4), step(5)], 6)
    with pytest.raises(JournalError, match="expected step 6 next, got 7: the steps between were not recorded"):
        plan.merge(7, [step(7)])
    with pytest.raises(JournalError, match="step 5 of the checkpoint differs from the published one"):
        plan.merge(5, [step(51)], fixed_below=6)
