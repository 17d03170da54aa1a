"""The rank of a choice, found in slices while later events are learned, is the one that it had at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.memory import (
    MemoryArrays,
    MemoryEvents,
    MemoryRules,
    Ranks,
    memory_learn,
    memory_learn_sampled,
    memory_logits,
)
from kernels.memory.ranking import (
    memory_rank_begin,
    memory_rank_end,
    memory_rank_next,
    memory_rank_rows,
)
from kernels.memory.ranking_state import MemoryRanking
from tests.kernels.test_memory import RULES, Stream, assert_same_memory
from tests.kernels.test_memory_sampled import UNIT_WIDTH, WIDTH, counted
from tests.kernels.yardstick import force, levels

SLOWLY = replace(RULES, seen_half_life=5000.0, heat_half_lives=(300.0, 1000.0, 4000.0))


class Scene:
    """A memory that has learned half of a stream, the first choice after that, and what comes then."""

    def __init__(self, num_rows: int, known: int, rules: MemoryRules, *, num_columns: int = 2) -> None:
        self.stream = Stream(num_rows=num_rows, num_events=80, num_columns=num_columns, weighed=True)
        self.num_rows, self.rules, events = num_rows, rules, self.stream.events()
        rng = np.random.default_rng(3)
        self.table_VD = rng.normal(size=(num_rows, WIDTH)).astype(np.float32)
        self.query_RD = rng.normal(size=(len(events), WIDTH)).astype(np.float32)
        self.memory = counted(Stream(num_rows=num_rows, num_columns=num_columns), 16, known, rules).copy()
        self.learn(events, 0, 40)
        is_ranked_R = (events.chosen_R == 1) & (events.target_R > 0) & (self.memory.first[events.target_R] >= 0)
        self.at = int(np.flatnonzero(is_ranked_R & (np.arange(len(events)) >= 40))[0])
        self.learn(events, 40, self.at)
        self.events, self.num_rescaled = events, 0

    def learn(self, events: MemoryEvents, start: int, stop: int) -> None:
        asked = np.flatnonzero(events.chosen_R[start:stop] == 1) + start
        memory_learn_sampled(
            self.memory, self.num_rows, events[start:stop], self.query_RD[asked], self.table_VD, UNIT_WIDTH, self.rules
        )

    @property
    def event(self) -> MemoryEvents:
        return self.events[self.at : self.at + 1]

    def begin(self, backend: str = "auto", *, given: bool = False) -> MemoryRanking:
        logit_V = self.logits()[0] if given else None
        return memory_rank_begin(
            self.memory, self.num_rows, self.event, self.query_RD[self.at], None if given else self.table_VD,
            UNIT_WIDTH, self.rules, logit_V=logit_V, backend=backend,
        )  # fmt: skip

    def logits(self) -> np.ndarray:
        return memory_logits(self.query_RD[self.at : self.at + 1], self.table_VD, self.num_rows, UNIT_WIDTH)

    def at_once(self) -> Ranks:
        done = memory_learn(self.memory.copy(), self.num_rows, self.event, self.logits(), self.rules)
        return Ranks(int(done.rank_R[0]), int(done.model_rank_R[0]), int(done.count_rank_R[0]), float(done.loss_R[0]))

    def later(self, ranking: MemoryRanking, early: np.ndarray | None = None, *, given: bool = False) -> Ranks:
        """Learn the rest of the stream, and change rows of the table, with a slice of rows after each event."""
        rng, table_VD = np.random.default_rng(4), None if given else self.table_VD
        if early is not None:
            memory_rank_rows(self.memory, ranking, early, table_VD, UNIT_WIDTH)
        for r in range(self.at, len(self.events)):
            changed = rng.integers(0, self.num_rows, 20)
            for rows in (self.events.target_R[r : r + 1], changed):
                memory_rank_rows(self.memory, ranking, rows, table_VD, UNIT_WIDTH)
            before, is_counted = self.memory.clock.copy(), self.events.chosen_R[r] > 0 and self.events.target_R[r] > 0
            self.learn(self.events, r, r + 1)
            self.num_rescaled += int((self.memory.clock[1:5] < before[1:5]).sum())
            ranking.follow_units(before, self.memory, int(is_counted), self.rules)
            self.table_VD[changed] += rng.normal(size=(20, WIDTH)).astype(np.float32)
            memory_rank_next(self.memory, ranking, self.num_rows // 30, table_VD, UNIT_WIDTH)
        memory_rank_next(self.memory, ranking, self.num_rows, table_VD, UNIT_WIDTH)
        return memory_rank_end(self.memory, ranking, self.rules)


def assert_same_ranks(found: Ranks, expected: Ranks) -> None:
    assert (found.rank, found.model_rank, found.count_rank) == (expected.rank, expected.model_rank, expected.count_rank)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("exclude", ["never", "always"])
@pytest.mark.parametrize(("num_rows", "known"), [(12, 0), (4000, 3500)])
@pytest.mark.parametrize("given", [False, True])
def test_ranks_are_those_of_the_moment_whatever_is_learned_meanwhile(
    monkeypatch: pytest.MonkeyPatch, level: str, exclude: str, num_rows: int, known: int, given: bool
) -> None:
    force(monkeypatch, level)
    scene = Scene(num_rows, known, replace(SLOWLY, exclude=exclude))
    expected = scene.at_once()
    assert_same_ranks(scene.later(scene.begin(given=given), given=given), expected)


def test_counts_may_get_another_unit_meanwhile() -> None:
    scene = Scene(4000, 3500, SLOWLY)
    memory, times = scene.memory, 0.999e12 / scene.memory.clock[1:5]  # as after many more events: close to overflow
    memory.clock[1:5] *= times
    memory.heat *= times[1:, None].astype(np.float32)
    for name in ("seen", "after", "before", "direct", "group_seen", "group_count", "group_total"):
        getattr(memory, name)[:] *= np.float32(times[0])
    expected = scene.at_once()
    assert_same_ranks(scene.later(scene.begin()), expected)
    assert scene.num_rescaled == 4


def test_which_rows_are_scored_early_makes_no_difference_to_the_bit() -> None:
    scenes = [Scene(4000, 3500, SLOWLY) for _ in range(2)]
    early = np.random.default_rng(5).permutation(4000)[:1500]
    found = [scene.later(scene.begin(), rows) for scene, rows in zip(scenes, (None, early), strict=True)]
    assert found[0] == found[1]
    for name in ("gain", "gain_square", "shortlist_weight", "shortlist_norm"):
        np.testing.assert_array_equal(*(getattr(scene.memory, name) for scene in scenes))


def test_how_rows_are_sliced_makes_no_difference_to_the_bit() -> None:
    amounts = []
    for num in (1, 37, 64, 4000):
        scene = Scene(4000, 3500, SLOWLY)
        ranking = scene.begin()
        while ranking.num_left:
            memory_rank_next(scene.memory, ranking, num, scene.table_VD, UNIT_WIDTH)
        amounts.append(ranking.amount)
    for found in amounts[1:]:
        np.testing.assert_array_equal(found, amounts[0])


def test_nothing_beyond_what_is_kept_of_a_choice_is_read_or_written() -> None:
    """Else what a checkpoint has of it would not be all."""
    found = []
    for beyond in (0.0, 100.0):
        scene = Scene(4000, 3500, SLOWLY)
        begun = scene.begin().state_dict()
        roomy = {name: np.append(array.reshape(-1), np.full(64, beyond, array.dtype)) for name, array in begun.items()}
        ranking = MemoryRanking(**{name: roomy[name][:-64].reshape(begun[name].shape) for name in begun})
        found.append((scene.later(ranking), scene.memory.gain, scene.memory.shortlist_weight))
        assert all((array[-64:] == beyond).all() for array in roomy.values())
    assert found[0][0] == found[1][0]
    for ours, theirs in zip(found[0][1:], found[1][1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("num_columns", [0, 2])
@pytest.mark.parametrize(("num_rows", "known"), [(12, 0), (4000, 3500)])
def test_a_choice_is_ranked_and_teaches_as_the_definition_does(num_rows: int, known: int, num_columns: int) -> None:
    found, memories = list[Ranks](), list[MemoryArrays]()
    for backend in ("reference", "cpp"):
        scene = Scene(num_rows, known, SLOWLY, num_columns=num_columns)
        ranking = scene.begin(backend)
        memory_rank_next(scene.memory, ranking, num_rows, scene.table_VD, UNIT_WIDTH, backend=backend)
        before = scene.memory.copy()
        found.append(memory_rank_end(scene.memory, ranking, SLOWLY, backend=backend))
        memories.append(scene.memory)
        assert (scene.memory.gain != before.gain).any() == (num_columns > 0)
        assert (scene.memory.shortlist_norm != before.shortlist_norm).any()
    assert_same_ranks(found[1], found[0])
    assert_same_memory(memories[1], memories[0])


def test_only_a_known_choice_is_ranked_and_only_when_all_rows_are_scored() -> None:
    scene = Scene(4000, 3500, SLOWLY)
    ranking = scene.begin()
    with pytest.raises(ValueError, match="4000 are left"):
        memory_rank_end(scene.memory, ranking, SLOWLY)
    scene.memory.first[scene.event.target_R[0]] = -1
    with pytest.raises(ValueError, match="of a row that was met before"):
        scene.begin()
