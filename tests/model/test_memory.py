"""The memory beside the item table: it grows, forgets, and is the same at a server as at the trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.memory import FEATURES, MemoryArrays
from kernels.memory.arrays import CLOCK, FIRST_GAINS, HIDDEN, NUM_HOURS, PAIRED, SEEN_AGAIN
from model.config import ModelConfig
from model.growing import keep_in
from model.kinds import chosen
from model.memory import Memory
from model.memory_events import events_of
from model.memory_form import in_form
from model.memory_groups import FIRST_GROUPS, GIVEN_BACK, MOST_GROUPS
from model.memory_pairs import empty_pairs
from model.memory_room import FIRST_CAPACITY, LARGE_CAPACITY, capacity_for, neighbours_at
from model.memory_version import GROUPS
from model.upgrade import ADDED
from wire.errors import VersionError

MODEL = ModelConfig(kinds=("impression", "click", "hide"), memory_neighbours=6, num_features=2)
SHOWN, CLICKED = 0b01, 0b11


def learn(memory: Memory, rng: np.random.Generator, num_rows: int, num: int = 20) -> None:
    """Learn one user's random choices, beside each three of which another item is shown. Items share features, of
    which there are more than a new memory has room for."""
    memory.grow(num_rows)
    rows = rng.integers(1, num_rows, num)
    starts, zeros, asked = np.array([0, num]), np.zeros(num, np.int64), np.arange(num)
    times, is_chosen = np.arange(num) * 600_000, np.arange(num) % 4 != 3
    bits = np.where(is_chosen, CLICKED, SHOWN).astype(np.uint32)
    memory.groups_of(np.arange(1, 2 * FIRST_GROUPS).repeat(2).reshape(-1, 2))
    group_RC = memory.groups_of(np.stack([1 + rows % 5, 2 * FIRST_GROUPS - 1 - rows % 7], axis=1))
    events = events_of(rows, bits, times, starts, zeros, asked, times, MODEL, is_chosen_R=is_chosen, group_RC=group_RC)
    memory.learn(events, rng.normal(size=(int(is_chosen.sum()), memory.num_rows)).astype(np.float32))


def scores(memory: Memory, past: list[int]) -> np.ndarray:
    rows, bits = np.array(past, np.int64), np.full(len(past), CLICKED, np.uint32)
    end, times = np.array([len(past)]), np.zeros(len(past), np.int64)
    starts, zero = np.array([0, len(past)]), np.zeros(1, np.int64)
    events = events_of(rows, bits, times, starts, zero, end, zero, MODEL, is_chosen_R=None)
    score = np.zeros((1, memory.num_rows), np.float32)
    memory.score(events, score)
    return score[0]


@settings(max_examples=30, deadline=None)
@given(
    rounds=st.lists(st.tuples(st.integers(2, 60), st.sets(st.integers(1, 8), max_size=3), st.booleans()), max_size=6),
    seed=st.integers(0, 1000),
)
def test_a_server_scores_as_the_trainer_does(rounds: list[tuple[int, set[int], bool]], seed: int) -> None:
    """Through arrivals, evictions, bases and deltas, groups of items among them; bit for bit."""
    trainer, server, rng = Memory(MODEL), Memory(MODEL), np.random.default_rng(seed)
    num_rows = 10
    for index, (more, gone, is_base) in enumerate([(0, set(), True), *rounds]):
        num_rows += more
        learn(trainer, rng, num_rows)
        trainer.forget(np.array(sorted(gone), np.int64))
        server.apply(trainer.changes(everything=is_base or not index), is_base=is_base or not index)
        trainer.mark_published()
        past = rng.integers(1, num_rows, 7).tolist()
        np.testing.assert_array_equal(scores(server, past), scores(trainer, past))
        np.testing.assert_array_equal(scores(server.copy(), past), scores(trainer, past))
        assert server.leaves_out_repeats == trainer.leaves_out_repeats
        np.testing.assert_array_equal(server.arrays.group, trainer.arrays.group)


def test_a_delta_is_what_changed() -> None:
    memory, rng = Memory(MODEL), np.random.default_rng(0)
    learn(memory, rng, 40, 300)
    memory.mark_published()
    assert len(memory.changes(everything=False)["row_index"]) == 0
    learn(memory, rng, 5, 10)
    changed = memory.changes(everything=False)["row_index"]
    assert set(changed.tolist()) <= {1, 2, 3, 4}
    assert len(memory.changes(everything=True)["row_index"]) == 39


def test_a_delta_carries_the_counts_that_changed_and_no_others() -> None:
    trainer, server, rng = Memory(MODEL), Memory(MODEL), np.random.default_rng(0)
    learn(trainer, rng, 60, 400)
    base = trainer.changes(everything=True)
    server.apply(base, is_base=True)
    trainer.mark_published()
    learn(trainer, rng, 60, 2)
    before, delta = server.arrays.copy(), trainer.changes(everything=False)
    server.apply(delta, is_base=False)
    assert 0 < len(delta["after"]) < len(base["after"]) / 4
    for name in ("neighbour_row", "after", "before", "direct", "weight", "num_neighbours"):
        np.testing.assert_array_equal(getattr(server.arrays, name)[:60], getattr(trainer.arrays, name)[:60], name)
    rows = np.repeat(delta["row_index"], delta["num_moved"])
    same = [getattr(before, name)[rows, delta["slot"]] == delta[name] for name in ("neighbour_row", "after", "before")]
    assert not np.logical_and.reduce(same).any()


def test_each_column_numbers_its_own_values_and_those_beyond_its_room_are_none() -> None:
    memory, brands = Memory(MODEL), 7_000_000 + np.arange(5 * MOST_GROUPS)
    for start in range(0, len(brands), 1000):
        brand = brands[start : start + 1000]
        groups = memory.groups_of(np.stack([brand, -1 - brand % 20], axis=1))
    assert memory.groups_of(np.array([[brands[-1], -1], [brands[3], -20], [0, 0]])).tolist() == [
        [0, 1],
        [4, 20],
        [0, 0],
    ]
    assert groups[:, 1].max() == 20
    assert memory.arrays.num_groups == MOST_GROUPS
    assert (memory.groups_of(np.stack([brands, brands], axis=1))[:, 0] > 0).sum() == MOST_GROUPS - 1


def crowded(rng: np.random.Generator, num_rows: int = 400) -> Memory:
    """A memory whose first column has no number left: of nearly all values no item was chosen, and some have one of its
    own."""
    memory = Memory(MODEL)
    learn(memory, rng, num_rows, 300)
    memory.groups_of(np.stack([5000 + np.arange(MOST_GROUPS), np.zeros(MOST_GROUPS, np.int64)], axis=1))
    rows = np.flatnonzero(memory.arrays.first >= 0)[:59]
    memory.arrays.group[rows, 0] = 101 + np.arange(59)
    return memory


def test_a_column_without_a_number_gives_back_those_of_the_values_that_were_chosen_least() -> None:
    memory, told = crowded(np.random.default_rng(0)), list[np.ndarray]()
    before, new = memory.arrays.copy(), np.array([[9_000_001, 0], [9_000_002, 0]])
    assert not memory.groups_of(new)[:, 0].any()
    memory.give_back_groups(told.append)
    gone_G = (before.group_key[0] != 0) & (memory.arrays.group_key[0] == 0)
    gone_G[0] = False
    assert gone_G.sum() == GIVEN_BACK
    assert before.group_seen[0, gone_G].max() <= before.group_seen[0, ~gone_G][1:].min()
    np.testing.assert_array_equal(memory.arrays.group_key[1], before.group_key[1])
    np.testing.assert_array_equal(memory.arrays.group_total, before.group_total)
    lost = np.flatnonzero(gone_G[before.group[:, 0]])
    assert 0 < len(lost) < 59
    np.testing.assert_array_equal(np.concatenate(told), lost)
    assert not memory.arrays.group[lost, 0].any()
    assert memory.arrays.dirty[lost].all()
    numbers = memory.groups_of(new)[:, 0]
    np.testing.assert_array_equal(numbers, np.flatnonzero(gone_G)[:2])
    for name in ("group_seen", "group_count"):
        assert not getattr(memory.arrays, name)[0, numbers].any()
    counted = memory.arrays.group_next[0][memory.arrays.group_count[0] > 0]
    assert not np.isin(counted, np.flatnonzero(gone_G)).any()


def test_a_column_that_turned_no_value_away_gives_no_number_back() -> None:
    memory, values = Memory(MODEL), 5000 + np.arange(MOST_GROUPS - 1)
    memory.groups_of(np.stack([values] * 2, axis=1))
    before = memory.arrays.copy()
    memory.give_back_groups(lambda _: pytest.fail("no row loses a group"))
    np.testing.assert_array_equal(memory.arrays.group_key, before.group_key)
    assert memory.groups_of(np.array([[1, 0]])).tolist() == [[0, 0]]
    memory.give_back_groups(lambda _: None)
    numbered = memory.groups_of(np.stack([values, values], axis=1)[::-1])
    assert (numbered > 0).all()
    memory.give_back_groups(lambda _: pytest.fail("all values have numbers again"))
    np.testing.assert_array_equal(memory.groups_of(np.stack([values, values], axis=1)[::-1]), numbered)


def test_what_continues_a_memory_that_turned_values_away_gives_the_same_numbers_back() -> None:
    memory, served = crowded(np.random.default_rng(1)), Memory(MODEL)
    stored, adopted, copied = Memory(MODEL), Memory(MODEL), memory.copy()
    stored.load_state_dict(memory.state_dict())
    served.apply(memory.changes(everything=True), is_base=True)
    adopted.adopt(served)
    memory.give_back_groups(lambda _: None)
    assert np.count_nonzero(memory.arrays.group_key[0]) == MOST_GROUPS - 1 - GIVEN_BACK
    for each in (stored, adopted, copied):
        each.give_back_groups(lambda _: None)
        np.testing.assert_array_equal(each.arrays.group_key, memory.arrays.group_key)


def test_what_continues_a_memory_that_gave_numbers_back_gives_the_same_ones() -> None:
    memory = crowded(np.random.default_rng(1))
    base = memory.changes(everything=True)
    memory.mark_published()
    memory.give_back_groups(lambda _: None)
    stored, served, adopted = Memory(MODEL), Memory(MODEL), Memory(MODEL)
    stored.load_state_dict(memory.state_dict())
    served.apply(base, is_base=True)
    served.apply(memory.changes(everything=False), is_base=False)
    np.testing.assert_array_equal(served.arrays.group[: memory.num_rows], memory.arrays.group[: memory.num_rows])
    adopted.adopt(served)
    values = np.stack([9_000_000 + np.arange(2 * GIVEN_BACK)] * 2, axis=1)
    numbered = memory.groups_of(values)
    assert np.count_nonzero(numbered[:, 0]) == GIVEN_BACK
    for each in (stored, adopted):
        np.testing.assert_array_equal(each.groups_of(values), numbered)


def test_groups_keep_their_numbers_in_whatever_continues_them() -> None:
    memory, key_RC = Memory(MODEL), np.array([[50, 7], [60, 8], [50, 9]])
    numbered = memory.groups_of(key_RC).tolist()
    stored, adopted, served = Memory(MODEL), Memory(MODEL), Memory(MODEL)
    stored.load_state_dict(memory.state_dict())
    served.apply(memory.changes(everything=True), is_base=True)
    adopted.adopt(served)
    memory.grow(5000)
    for each in (memory, stored, adopted, memory.copy()):
        assert each.groups_of(key_RC[::-1]).tolist() == numbered[::-1]


def test_a_version_without_groups_is_continued_with_groups() -> None:
    served = Memory(replace(MODEL, num_features=0))
    learn(served, np.random.default_rng(0), 10, 100)
    adopted = Memory(MODEL)
    adopted.adopt(served)
    assert adopted.groups_of(np.array([[50, 7], [60, 8], [50, 9]])).tolist() == [[1, 1], [2, 2], [1, 3]]
    learn(adopted, np.random.default_rng(1), 10, 100)
    assert adopted.arrays.group_total.all()


def test_every_column_of_a_readers_memory_grows_in_files_from_the_first_base_on(tmp_path: Path) -> None:
    keep_in(str(tmp_path))
    try:
        trainer, server = Memory(MODEL), Memory(MODEL)
        learn(trainer, np.random.default_rng(0), 30)
        server.apply(trainer.changes(everything=True), is_base=True)
        assert server.arrays.hour.any()
        for name in ("seen", "hour", "weight"):
            root = getattr(server.arrays, name)
            while isinstance(root.base, np.ndarray):
                root = root.base
            assert not root.flags.owndata, f"{name}: in a file, not in memory"
    finally:
        keep_in("")


@pytest.mark.parametrize("size", [(0, 1024, 6), (30, 29, 6), (30, 1 << 40, 6), (1 << 40, 1024, 6), (30, 1024, 1 << 30)])
def test_a_version_that_states_a_size_that_no_memory_has_is_refused(size: tuple[int, int, int]) -> None:
    trainer = Memory(MODEL)
    learn(trainer, np.random.default_rng(0), 30)
    changes = trainer.changes(everything=True)
    with pytest.raises(ValueError, match=r"memory\.size: expected"):
        Memory(MODEL).apply({**changes, "size": np.array(size, np.int64)}, is_base=True)


def test_an_evicted_row_is_nobodys_neighbour() -> None:
    memory, rng = Memory(MODEL), np.random.default_rng(0)
    learn(memory, rng, 10, 100)
    memory.forget(np.array([3, 4]))
    arrays = memory.arrays
    assert not arrays.group[[3, 4]].any()
    assert not arrays.hour[[3, 4]].any()
    assert arrays.hour[5].any()
    for row in range(10):
        assert not {3, 4} & set(arrays.neighbour_row[row, : arrays.num_neighbours[row]].tolist())
    assert arrays.num_neighbours[3] == arrays.seen[3] == 0
    assert arrays.first[3] == -1
    assert scores(memory, [1, 2])[3] < -1e29
    assert scores(memory, [1, 2])[5] > -1e29


def test_a_memory_that_outgrows_its_room_keeps_the_strongest_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.memory.FIRST_CAPACITY", 16)
    monkeypatch.setattr("model.memory_room.FREE_BYTES", 20 * 16 * 6)
    monkeypatch.setattr("model.memory_room.FEWEST_NEIGHBOURS", 2)
    memory, rng = Memory(MODEL), np.random.default_rng(0)
    learn(memory, rng, 12, 200)
    before = memory.arrays.copy()
    memory.grow(17)
    after = memory.arrays
    assert (before.width, after.width, after.capacity) == (6, 3, 32)
    for row in range(1, 12):
        strength = (before.after + before.before)[row, : before.num_neighbours[row]]
        kept = (after.after + after.before)[row, : after.num_neighbours[row]]
        np.testing.assert_array_equal(kept, [each for each in strength if each in np.sort(strength)[::-1][:3]])
    assert after.dirty[1:12].all()


def test_a_memory_whose_width_stays_grows_in_place_and_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.memory_room.FREE_BYTES", 0)
    monkeypatch.setattr("model.memory_room.FEWEST_NEIGHBOURS", 4)
    monkeypatch.setattr("model.memory_pairs.MOST_PAIRS", 256)
    roomy = Memory(MODEL)
    monkeypatch.setattr("model.memory.FIRST_CAPACITY", 16)
    memory, places = Memory(MODEL), set[int]()
    for num_rows in (12, 20, 40, 70, 130):
        for each in (memory, roomy):
            learn(each, np.random.default_rng(num_rows), num_rows, 60)
        if num_rows > 12:
            places.add(memory.arrays.after.ctypes.data)
    assert (memory.arrays.capacity, roomy.arrays.capacity) == (256, 1024)
    assert len(places) == 1, "no row has moved"
    ours, theirs = memory.state_dict(), roomy.state_dict()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []
    assert (memory.arrays.first[memory.num_rows :] == -1).all()

    grown = memory.copy()
    grown.grow(500)
    learn(grown, np.random.default_rng(9), 500, 30)
    after = memory.state_dict()
    assert [name for name in ours if not np.array_equal(ours[name], after[name])] == [], "a copy shares nothing"


def test_a_million_items_take_at_most_512_bytes_each() -> None:
    num = 1 << 20
    arrays = MemoryArrays.empty(256, neighbours_at(num, 256), 8, num_hours=NUM_HOURS)
    by_row = [array.nbytes for name in MemoryArrays.__slots__ if 256 in (array := getattr(arrays, name)).shape[:2]]
    assert len(by_row) == 14
    assert sum(by_row) / 256 <= 512


@pytest.mark.parametrize("num_builds", [0, 1, 2, 3, 4, 5, 6])
def test_a_memory_of_an_older_build_is_continued(num_builds: int) -> None:
    """Builds that did not count visits published a shorter clock. Those without an item's times of day have a feature
    less, those without pairs three, those without a user's sequences and times of day five, those without groups six,
    those without what was shown eight, those without the times of choices eleven."""
    memory, rng = Memory(MODEL), np.random.default_rng(0)
    learn(memory, rng, 30, 100)
    at = [FEATURES.index(name) for added in ADDED[:num_builds] for name in added]
    for held in (memory.changes(everything=True), memory.state_dict()):
        lacks = tuple(name for name, since in (("hour", 0), ("pair", 1), ("group", 3)) if num_builds > since)
        older = {name: array.copy() for name, array in held.items() if not name.startswith(lacks)}
        older |= {name: np.delete(array, at, axis=1) for name, array in older.items() if name.startswith("gain")}
        older["clock"] = older["clock"][: CLOCK.index("begun")]
        if num_builds:
            older |= {name: array[..., :-1] for name, array in older.items() if name.startswith("shortlist_")}
        other = Memory(MODEL)
        if "row_index" in older:
            other.apply(older, is_base=True)
        else:
            other.load_state_dict(older)
        np.testing.assert_array_equal(np.delete(other.arrays.gain, at, axis=1), older["gain"])
        np.testing.assert_array_equal(other.arrays.after[:30], memory.arrays.after[:30])
        np.testing.assert_array_equal(other.arrays.gain[0, at], [FIRST_GAINS.get(FEATURES[each], 0.0) for each in at])
        assert not other.arrays.gain[1:, at].any()
        assert other.arrays.across_visits == Memory(MODEL).arrays.across_visits
        learn(other, rng, 30, 20)
        assert other.is_finite
        assert other.arrays.gain[:, at].any() or num_builds < 3  # a reader counts only what its trainer does


@pytest.mark.parametrize("older", [3, 5])
def test_a_memory_of_a_build_with_other_numbers_of_neighbours_is_continued(
    older: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.memory_room.FREE_BYTES", 0)
    monkeypatch.setattr("model.memory_room.FEWEST_NEIGHBOURS", older)
    before, rng = Memory(MODEL), np.random.default_rng(0)
    learn(before, rng, 30, 100)
    state, base = before.copy().state_dict(), before.copy().changes(everything=True)
    before.mark_published()
    learn(before, np.random.default_rng(1), 30, 20)
    monkeypatch.setattr("model.memory_room.FEWEST_NEIGHBOURS", 4)
    trainer, server = Memory(MODEL), Memory(MODEL)
    trainer.load_state_dict(state)
    trainer.mark_published()
    learn(trainer, np.random.default_rng(1), 30, 20)
    server.apply(base, is_base=True)
    server.apply(before.changes(everything=False), is_base=False)
    ours, theirs = before.state_dict(), trainer.state_dict()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []
    np.testing.assert_array_equal(scores(server, [1, 2]), scores(trainer, [1, 2]))
    trainer.grow(3000)
    assert trainer.arrays.width == 4
    learn(trainer, rng, 3000, 20)
    assert trainer.is_finite


def test_what_is_kept_is_everything() -> None:
    memory, rng = Memory(MODEL), np.random.default_rng(0)
    learn(memory, rng, 30, 100)
    other = Memory(MODEL)
    other.load_state_dict({name: array.copy() for name, array in memory.state_dict().items()})
    for each, number in ((memory, 1), (other, 1)):
        learn(each, np.random.default_rng(number), 40, 50)
    assert all(
        left.tobytes() == right.tobytes()
        for left, right in zip(memory.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_without_a_reranking_network_scores_are_the_weighted_sum() -> None:
    """As after an upgrade (`model.upgrade`)."""
    trainer, server, rng = Memory(MODEL), Memory(MODEL), np.random.default_rng(0)
    learn(trainer, rng, 30, 100)
    changes = trainer.changes(everything=True)
    server.apply({k: v for k, v in changes.items() if not k.startswith("shortlist")}, is_base=True)
    trainer.arrays.shortlist_weight[:] = 0.0
    np.testing.assert_allclose(scores(server, [1, 2]), scores(trainer, [1, 2]), rtol=1e-5)


@pytest.mark.parametrize(
    ("bits", "config", "expected"),
    [
        (0b001, MODEL, False),  # shown alone
        (0b011, MODEL, True),
        (0b111, MODEL, False),  # clicked, then hidden
        (0b000, MODEL, False),
        (0b001, ModelConfig(kinds=("impression",)), True),  # nothing else can be predicted
        (0b001, ModelConfig(kinds=("view", "click"), positive_kinds=("click",)), False),
        (0b011, ModelConfig(kinds=("view", "skip"), positive_kinds=("view", "skip")), True),
        (0b011, ModelConfig(kinds=("view", "back"), negative_kinds=("back",)), False),
    ],
)
def test_a_choice_is_what_its_kinds_say(bits: int, config: ModelConfig, expected: bool) -> None:
    assert chosen(np.array([bits], np.uint32), config).tolist() == [expected]


def test_a_large_memory_grows_by_an_eighth_to_the_same_capacity_in_one_step_or_many() -> None:
    capacity = FIRST_CAPACITY
    for num_rows in range(1000, 4_000_000, 37_000):
        capacity = capacity_for(num_rows, capacity)
        assert capacity == capacity_for(num_rows, FIRST_CAPACITY)
        most = 2.0 if num_rows < LARGE_CAPACITY else 9 / 8
        assert num_rows <= capacity <= max(FIRST_CAPACITY, most * num_rows)


@pytest.mark.parametrize("is_version", [False, True], ids=["a checkpoint", "a version"])
def test_a_memory_that_was_on_a_gpu_when_those_had_no_pairs_is_continued_with_them(*, is_version: bool) -> None:
    """After a stream so long that little is left of what slows these features down at first."""
    before = Memory(MODEL)
    lacked = [FEATURES.index(name) for name in ("hourly", *PAIRED)]
    before.arrays = replace(before.arrays, hour=before.arrays.hour[:, :0], **empty_pairs(0))
    learn(before, np.random.default_rng(0), 30, 100)
    arrays = before.arrays
    arrays.gain_square[:, lacked] = arrays.shortlist_norm[1, lacked] = 1e-9
    arrays.shortlist_square[: len(SEEN_AGAIN) * (1 + HIDDEN)].reshape(-1, len(SEEN_AGAIN))[:, lacked] = 1e-9
    after, empty = Memory(MODEL), Memory(MODEL).arrays
    if is_version:
        server = Memory(MODEL)
        server.apply(before.changes(everything=True), is_base=True)
        after.adopt(server)
    else:
        after.load_state_dict(before.state_dict())
    for name in ("gain_square", "shortlist_norm"):
        np.testing.assert_array_equal(getattr(after.arrays, name)[:, lacked], getattr(empty, name)[:, lacked])
    assert after.arrays.shortlist_square.min() > 1e-9
    np.testing.assert_array_equal(after.arrays.after[:30], arrays.after[:30])
    np.testing.assert_array_equal(after.arrays.shortlist_norm[2, 0], arrays.shortlist_norm[2, 0])
    learn(after, np.random.default_rng(1), 30, 100)
    assert after.arrays.pair_count.any()
    assert after.arrays.hour.any()
    assert after.arrays.gain[0, lacked].all()


def test_a_version_without_groups_is_in_form_whatever_features_the_model_has() -> None:
    """As trainers published it whose memory on a GPU counted no groups."""
    memory = Memory(replace(MODEL, num_features=0))
    learn(memory, np.random.default_rng(0), 30)
    changes = memory.changes(everything=True)
    changes |= {name: changes[name][:0] for name in GROUPS} | {"group": changes["group"][:, :0]}
    in_form(changes, num_columns=2)
    with pytest.raises(VersionError, match=r"memory\.group: expected \(\d+, 3\)"):
        in_form(Memory(MODEL).changes(everything=True), num_columns=3)
