"""Pairs of choices in versions and checkpoints: readers count as the trainer does, and tables grow without a loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.memory import MemoryArrays
from kernels.memory.arrays import PAIRED
from kernels.memory.pairs import slots_of
from model import memory_pairs
from model.memory import Memory
from model.memory_pairs import MOST_PAIRS, PAIR_CHANGES, PAIRS, pairs_at, with_pairs
from tests.model.test_memory import MODEL, learn, scores


def counted(memory: Memory) -> list[tuple[int, int, dict[int, float]]]:
    """What is counted of each pair, in any order."""
    arrays = memory.arrays
    used = np.flatnonzero(arrays.pair_row[:, 0])
    found = []
    for slot in used.tolist():
        count_N = arrays.pair_count[slot]
        then = {int(row): float(count) for row, count in zip(arrays.pair_next[slot], count_N, strict=True) if count > 0}
        found.append((int(arrays.pair_row[slot, 0]), int(arrays.pair_row[slot, 1]), then))
    return sorted(found, key=lambda each: each[:2])


def test_there_is_room_for_a_power_of_two_that_grows_up_to_a_bound() -> None:
    sizes = [pairs_at(capacity) for capacity in (1, 1000, 1024, 1 << 13, 1 << 14, 1 << 20, 1 << 24)]
    assert sizes == [16, 1 << 14, 1 << 14, 1 << 17, MOST_PAIRS, MOST_PAIRS, MOST_PAIRS]


def test_a_million_items_take_at_most_24_bytes_each_for_their_pairs() -> None:
    arrays = MemoryArrays.empty(0, 1, 1, num_pairs=pairs_at(1 << 20))
    assert sum(getattr(arrays, name).nbytes for name in (*PAIRS, *PAIR_CHANGES)) <= 24 << 20


@settings(max_examples=20, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(st.integers(0, 30), st.sets(st.integers(1, 8), max_size=3), st.integers(0, 40), st.booleans()),
        max_size=6,
    ),
    seed=st.integers(0, 1000),
    first=st.sampled_from([16, 64]),
)
def test_a_reader_has_the_pairs_of_the_trainer(
    rounds: list[tuple[int, set[int], int, bool]], seed: int, first: int
) -> None:
    """Through arrivals, evictions, larger tables, bases and deltas; bit for bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.memory.FIRST_CAPACITY", first)
        patch.setattr(memory_pairs, "PAIRS_PER_ROW", 1)
        trainer, server, rng, num_rows = Memory(MODEL), Memory(MODEL), np.random.default_rng(seed), 10
        for index, (more, gone, later, is_base) in enumerate([(0, set(), 0, True), *rounds]):
            num_rows += more
            learn(trainer, rng, num_rows)
            trainer.forget(np.array(sorted(gone), np.int64))
            num_rows += later
            trainer.grow(num_rows)
            server.apply(trainer.changes(everything=is_base or not index), is_base=is_base or not index)
            trainer.mark_published()
            assert server.arrays.num_pairs == trainer.arrays.num_pairs == pairs_at(trainer.arrays.capacity)
            np.testing.assert_array_equal(server.arrays.pair_row, trainer.arrays.pair_row)
            assert counted(server) == counted(trainer)
            past = rng.integers(1, num_rows, 7).tolist()
            np.testing.assert_array_equal(scores(server, past), scores(trainer, past))


def test_a_delta_carries_the_pairs_that_changed_and_of_them_the_successors_that_did() -> None:
    memory, rng = Memory(MODEL), np.random.default_rng(0)
    learn(memory, rng, 20, 400)
    base = memory.changes(everything=True)
    memory.mark_published()
    assert len(memory.changes(everything=False)["pair_index"]) == 0
    learn(memory, rng, 20, 3)
    delta = memory.changes(everything=False)
    assert 0 < len(delta["pair_index"]) <= 2 < len(base["pair_index"])
    assert 0 < len(delta["pair_count"]) <= 16 < len(base["pair_count"])


@pytest.mark.parametrize("broken", ["moved", "index", "row"])
def test_a_version_that_lacks_a_part_would_be_noticed(broken: str) -> None:
    trainer, server, rng = Memory(MODEL), Memory(MODEL), np.random.default_rng(0)
    learn(trainer, rng, 20, 100)
    server.apply(trainer.changes(everything=True), is_base=True)
    trainer.mark_published()
    learn(trainer, rng, 20, 100)
    changes = trainer.changes(everything=False)
    if broken == "moved":
        kept = np.unpackbits(changes["pair_moved"]).sum() - int(changes["pair_moved"][-1]).bit_count()
        changes |= {name: changes[name][:kept] for name in ("pair_next", "pair_count")}
        changes |= {"pair_moved": np.append(changes["pair_moved"][:-1], np.uint8(0))}
    elif broken == "index":
        changes["pair_index"] = np.roll(changes["pair_index"], 1)
    else:
        changes["pair_row"] = changes["pair_row"][:, ::-1].copy()
    server.apply(changes, is_base=False)
    assert counted(server) != counted(trainer)


def test_no_pair_is_lost_in_a_larger_table_where_no_two_share_a_slot() -> None:
    memory, rng = Memory(MODEL), np.random.default_rng(0)
    learn(memory, rng, 30, 300)
    memory.mark_published()
    old, before = memory.arrays, counted(memory)
    memory.arrays = with_pairs(old, 4 * old.num_pairs)
    assert counted(memory) == before
    arrays = memory.arrays
    used = np.flatnonzero(arrays.pair_row[:, 0])
    np.testing.assert_array_equal(used, np.sort(slots_of(arrays.pair_row[used], arrays.num_pairs)))
    was_used = np.flatnonzero(old.pair_row[:, 0])
    assert arrays.pair_dirty[used].all()
    assert arrays.pair_dirty[was_used].all()
    assert (arrays.pair_moved[was_used] == 255).all()


def test_versions_and_checkpoints_of_earlier_builds_are_continued_with_pairs() -> None:
    old, rng = Memory(MODEL), np.random.default_rng(0)
    learn(old, rng, 30, 100)
    published, kept = (
        {name: array for name, array in state.items() if not name.startswith("pair")}
        for state in (old.changes(everything=True), old.state_dict())
    )
    served, adopted, resumed = Memory(MODEL), Memory(MODEL), Memory(MODEL)
    served.apply(published, is_base=True)
    assert served.arrays.num_pairs == 0
    adopted.adopt(served)
    resumed.load_state_dict(kept)
    for memory in (adopted, resumed):
        assert memory.arrays.num_pairs == pairs_at(memory.arrays.capacity)
        assert not counted(memory)
        learn(memory, rng, 30, 100)
        assert counted(memory)


def test_a_memory_on_a_gpu_keeps_those_of_one_on_the_host() -> None:
    memory = Memory(MODEL)
    learn(memory, np.random.default_rng(0), 30, 100)
    there = Memory(MODEL, group=8)
    there.adopt(memory)
    for name in PAIRS:
        np.testing.assert_array_equal(getattr(there.arrays, name), getattr(memory.arrays, name), err_msg=name)
    assert there.arrays.num_pairs > 0


def test_what_is_learned_of_pairs_has_gains_of_its_own() -> None:
    memory = Memory(MODEL)
    learn(memory, np.random.default_rng(0), 6, 200)
    assert memory.arrays.gain[:, -len(PAIRED) :].any()
