"""The memory on a GPU against its definition, in Triton's interpreter: groups, order, room, and what the host gets."""

from __future__ import annotations

import os
import weakref
from dataclasses import fields, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run in a process of its own by test_interpreter.py", allow_module_level=True)

from bench.on_gpu.single_pass import synthetic_examples
from kernels.memory import FEATURES, MemoryArrays, MemoryEvents, MemoryOutcome, MemoryRules, device, reference
from kernels.memory.arrays import CHANGED, CLOCK, NUM_HOURS, PAIRED
from kernels.memory.device import DeviceMemory
from kernels.memory.pairs import slots_of
from kernels.memory.triton_features import LIST
from kernels.memory.triton_pick import OUT, pick
from model.config import ModelConfig
from model.memory import Memory
from tests.kernels.test_memory import (
    NUM_BUCKETS,
    NUM_GROUPS,
    RULES,
    Stream,
    assert_same_memory,
    events_at_once,
    long_ago,
)
from tests.trainer.test_left_out import repeats_of
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch
from trainer.learner.step import Learner
from wire.example import Example, rows_of

CPU = torch.device("cpu")
GROUP = 8
STREAM = Stream(num_rows=80, num_users=3, num_events=GROUP + 4, seed=4)
PAIRED_STREAM = replace(STREAM, num_pairs=1024, num_users=1)


def started(stream: Stream = STREAM, *, width: int = 16, events: int = 64 * GROUP) -> MemoryArrays:
    """A memory that has met some of the rows, at an age at which events are grouped."""
    sizes = stream.num_columns, NUM_GROUPS, stream.num_pairs, stream.num_hours
    memory = MemoryArrays.empty(96, width, NUM_BUCKETS, *sizes)
    known = replace(stream, seed=99, num_events=40)
    reference.memory_learn(memory, stream.num_rows, known.events(), known.logits(), RULES)
    memory.clock[0] = events
    memory.dirty[:] = memory.moved[:] = 0
    memory.pair_dirty[:] = memory.pair_moved[:] = 0
    return memory


def started_with_pairs(counted: float) -> MemoryArrays:
    """A memory in which eight rows have followed all pairs that are asked for, and count so much, and which has met
    nothing lately."""
    memory, past = started(PAIRED_STREAM), PAIRED_STREAM.events().past_rows
    for pair in [pair for both in pairwise(past.tolist()) for pair in (both, (both[0], 0))]:
        slot = slots_of(np.array([pair], np.int32), memory.num_pairs)
        memory.pair_row[slot], memory.pair_next[slot] = pair, np.arange(60, 68)
        memory.pair_count[slot] = counted * np.linspace(0.5, 3.0, 8, dtype=np.float32)
    memory.clock[CLOCK.index("newest_ms")] = 1.0
    return memory


def both(
    memory: MemoryArrays, stream: Stream = STREAM, rules: MemoryRules = RULES
) -> tuple[tuple[MemoryArrays, MemoryOutcome], tuple[MemoryArrays, MemoryOutcome]]:
    """What the definition, and what the kernels make of a memory."""
    slow, fast = memory.copy(), memory.copy()
    there = DeviceMemory(fast, rules, CPU, GROUP)
    events, logits, num_rows = stream.events(), stream.logits(), stream.num_rows
    expected = reference.memory_learn_grouped(slow, num_rows, events, logits, rules, GROUP)
    got = there.learn(num_rows, events, torch.from_numpy(logits)).wait()
    there.fetch(fast)
    return (slow, expected), (fast, got)


def assert_same(ours: tuple[MemoryArrays, MemoryOutcome], definition: tuple[MemoryArrays, MemoryOutcome]) -> None:
    assert_same_memory(ours[0], definition[0])
    np.testing.assert_array_equal(ours[0].recent, definition[0].recent)
    np.testing.assert_allclose(ours[1].loss_R, definition[1].loss_R, rtol=1e-3, atol=1e-4)
    for name in ("rank_R", "model_rank_R", "count_rank_R"):
        np.testing.assert_array_equal(getattr(ours[1], name), getattr(definition[1], name))


@pytest.mark.parametrize("exclude", ["never", "always", "auto"])
def test_groups_are_learned_as_the_definition_does(exclude: str) -> None:
    definition, ours = both(started(), rules=replace(RULES, exclude=exclude))
    assert_same(ours, definition)
    assert (definition[1].rank_R > 0).any()


@pytest.mark.parametrize(("half_lives", "both"), [(20, False), (135, False), (110, True)])
def test_what_follows_a_choice_of_long_ago_is_what_the_definition_says(half_lives: int, both: bool) -> None:
    slow, events = long_ago(half_lives, both=both), events_at_once([2, 4], [1, 1], [[1], [1]], [[], []])
    slow.clock[0] = 64 * GROUP
    fast, logits = slow.copy(), np.zeros((2, 12), np.float32)
    there = DeviceMemory(fast, RULES, CPU, GROUP)
    expected = reference.memory_learn_grouped(slow, 12, events, logits, RULES, GROUP)
    got = there.learn(12, events, torch.from_numpy(logits)).wait()
    there.fetch(fast)
    assert np.isfinite(got.loss_R).all()
    assert np.isfinite(fast.gain).all()
    assert_same((fast, got), (slow, expected))


@triton.jit
def pick_kernel(score_ptr, list_ptr, num_ptr, num_rows, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(num_ptr, pick(score_ptr, list_ptr, num_rows, BLOCK))


@pytest.mark.parametrize("values", [2, 50, 10**6])
@pytest.mark.parametrize("share_out", [0.0, 0.4, 0.95, 1.0])
def test_the_best_rows_are_listed_of_equal_ones_the_first(values: int, share_out: float) -> None:
    rng = np.random.default_rng(values)
    for num_rows in (1, 63, 64, 65, 300):
        score = (rng.integers(-values, values, num_rows) * np.float32(0.37)).astype(np.float32)
        score[rng.random(num_rows) < share_out] = OUT.value
        listed, num = torch.full((LIST.value,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        pick_kernel[(1,)](torch.from_numpy(score), listed, num, num_rows, 64)
        competing = np.flatnonzero(score > OUT.value)
        best = competing[np.argsort(-score[competing], kind="stable")][: LIST.value]
        assert listed[: num.item()].tolist() == sorted(best.tolist())


@pytest.mark.parametrize("num_columns", [1, 3])
@pytest.mark.parametrize("events", [0, 64 * GROUP])
def test_groups_of_items_are_learned_as_the_definition_does(num_columns: int, events: int) -> None:
    stream = replace(STREAM, num_columns=num_columns)
    memory = started(stream, events=64 * GROUP)
    definition, ours = both(memory if events else stream.memory(16), stream)
    assert_same(ours, definition)
    assert (definition[0].group_share != memory.group_share).any()


def test_rows_without_room_keep_the_neighbours_that_the_definition_keeps() -> None:
    definition, ours = both(started(width=5))
    assert_same(ours, definition)


def test_the_first_events_are_predicted_one_by_one() -> None:
    stream = replace(STREAM, num_events=6)
    definition, ours = both(stream.memory(16), stream)
    assert_same(ours, definition)


@pytest.mark.parametrize("clock", ["seen_scale", "heat_scale_0"])
def test_counts_are_rescaled_before_they_outgrow_a_float(clock: str) -> None:
    memory = started()
    memory.clock[CLOCK.index(clock)] *= 1e15
    definition, ours = both(memory, replace(STREAM, num_events=GROUP))
    assert definition[0].clock[CLOCK.index(clock)] < 1e12
    assert_same(ours, definition)


def test_the_same_events_give_the_same_bits() -> None:
    memory, stream = started(), replace(STREAM, num_events=GROUP)
    (_, (first, _)), (_, (second, _)) = both(memory, stream), both(memory, stream)
    for each in fields(first):
        np.testing.assert_array_equal(getattr(first, each.name), getattr(second, each.name), err_msg=each.name)


def test_what_was_fetched_is_marked_and_nothing_else() -> None:
    memory, of_a_reader = started(), 1
    memory.dirty[:] = memory.pair_dirty[:] = of_a_reader
    there = DeviceMemory(memory, RULES, CPU, GROUP)
    none = np.zeros(1, np.int64)
    met = MemoryEvents(
        np.array([7], np.int32), np.zeros(1, np.uint8), np.zeros(0, np.int32), none, none, np.zeros(0, np.int32), none,
        none, none[:0], none, np.zeros(0, np.int32), none, none,
    )  # fmt: skip
    there.learn(80, met, torch.zeros(0, 80))
    there.fetch(memory)
    assert memory.dirty[7] == CHANGED
    assert np.count_nonzero(memory.dirty != of_a_reader) == 1
    assert (memory.pair_dirty == of_a_reader).all()


@pytest.mark.parametrize("left_out", ["learn_weights_kernel", "learn_events_kernel", "count_events_kernel"])
def test_a_build_that_leaves_something_out_is_noticed(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def __getitem__(self, grid: object) -> object:
            return lambda *_, **__: None

    monkeypatch.setattr(device, left_out, Nothing())
    definition, ours = both(started(), replace(STREAM, num_events=GROUP))
    with pytest.raises(AssertionError):
        assert_same(ours, definition)


@triton.jit
def nothing(*_):  # type: ignore[no-untyped-def]
    pass


@pytest.mark.parametrize(
    ("module", "part", "unit"),
    [("predict", "note_pairs", 1.0), ("predict", "list_pairs", 1.0), ("neighbours", "count_pairs", 1.0),
     ("learn", "count_hours", 1.0), ("learn", "note_time", 1.0), ("neighbours", "refresh_hourly", 1.0),
     ("learn", "rescale_pairs", 1e15)],
)  # fmt: skip
def test_a_build_without_a_part_of_pairs_or_times_of_day_is_noticed(
    module: str, part: str, unit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = started_with_pairs(1.0)
    memory.clock[CLOCK.index("seen_scale")] *= unit
    monkeypatch.setattr(f"kernels.memory.triton_{module}.{part}", nothing)
    definition, ours = both(memory, PAIRED_STREAM)
    with pytest.raises(AssertionError):
        assert_same(ours, definition)


def test_a_group_that_is_new_within_the_events_is_known_to_those_that_follow() -> None:
    """One user chooses three new items, of which the first two tell their groups, and the first one twice."""
    rows, told = [1, 2, 1, 3], np.array([[1], [2], [3], [0]], np.int32)
    past = [rows[:each] for each in range(4)]
    events = replace(events_at_once(rows, np.ones(4), past, past), group_RC=told)
    memory = MemoryArrays.empty(8, 8, NUM_BUCKETS, 1, 64, 32, NUM_HOURS)
    memory.clock[0] = 64 * GROUP
    expected, ours = memory.copy(), DeviceMemory(memory, RULES, CPU, GROUP)
    definition = reference.memory_learn_grouped(expected, 8, events, np.zeros((4, 8), np.float32), RULES, GROUP)
    got = ours.learn(8, events, torch.zeros(4, 8)).wait()
    ours.fetch(memory)
    assert_same((memory, got), (expected, definition))
    assert expected.group[:4, 0].tolist() == [0, 3, 2, 0]
    assert expected.group_next[0, 1:3, 0].tolist() == [2, 3]
    assert expected.group_seen[0, 1:4].tolist() == pytest.approx([1.0, 2 ** (1 / 50), 2 ** (2 / 50)])
    assert got.rank_R.tolist()[:2] == [0, 0]
    assert got.rank_R[2] > 0  # met earlier in the same group
    assert got.rank_R[3] == 0


def test_a_group_that_takes_several_launches_is_learned_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = replace(STREAM, num_columns=1, num_events=GROUP)
    _, (whole, _) = both(started(stream), stream)
    monkeypatch.setattr(device, "SCRATCH_BYTES", 1)
    _, (one_by_one, _) = both(started(stream), stream)
    for each in fields(whole):
        np.testing.assert_array_equal(getattr(one_by_one, each.name), getattr(whole, each.name), err_msg=each.name)


def test_full_lists_of_groups_that_followed_lose_what_the_definition_loses() -> None:
    stream = replace(STREAM, num_columns=2, num_users=1)
    memory = started(stream)
    memory.group_next[:, 1:] = np.arange(1, 17) * 2 % 29
    memory.group_count[:, 1:] = np.linspace(0.5, 3.0, 16, dtype=np.float32)
    definition, ours = both(memory, stream)
    assert_same(ours, definition)
    assert (definition[0].group_count != memory.group_count).any()


@pytest.mark.parametrize("num_pairs", [1, 8, 1024])
def test_pairs_that_want_the_same_slots_are_counted_as_the_definition_does(num_pairs: int) -> None:
    stream = replace(STREAM, num_pairs=num_pairs, num_users=1)
    memory = started(stream)
    definition, ours = both(memory, stream)
    assert_same(ours, definition)
    changed = (definition[0].pair_row != memory.pair_row).any(axis=1)
    assert changed.any() if num_pairs > 1 else definition[0].pair_dirty.all()
    places = [FEATURES.index(name) for name in PAIRED]
    assert num_pairs == 1 or definition[0].gain[0, places].any()


@pytest.mark.parametrize("counted", [0.1, 1.0, 20.0])
def test_what_follows_a_pair_in_more_ways_than_it_has_places_loses_what_the_definition_takes(counted: float) -> None:
    memory = started_with_pairs(counted)
    definition, ours = both(memory, PAIRED_STREAM)
    assert_same(ours, definition)
    is_other = definition[0].pair_next != memory.pair_next
    assert is_other.any() == (counted < 20)
    assert (definition[0].pair_moved == 255).any()


def test_a_time_of_day_is_that_of_the_latest_event_before_a_group() -> None:
    """Also where none is known yet, and where an event comes late."""
    events = STREAM.events()
    events.now_ms_R[-1] = events.now_ms_R[0] - 1
    for memory in (started(), STREAM.memory(16)):
        fast = memory.copy()
        memory.clock[0] = fast.clock[0] = 64 * GROUP
        there = DeviceMemory(fast, RULES, CPU, GROUP)
        reference.memory_learn_grouped(memory, 80, events, STREAM.logits(), RULES, GROUP)
        there.learn(80, events, torch.from_numpy(STREAM.logits()))
        there.fetch(fast)
        assert fast.clock[CLOCK.index("newest_ms")] == memory.clock[CLOCK.index("newest_ms")]
        np.testing.assert_allclose(fast.hour, memory.hour, rtol=1e-5)


def test_a_memory_that_grows_and_loses_rows_goes_on_as_the_definition_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also its table of pairs, in which pairs then have slots of their own, or none."""
    monkeypatch.setattr("model.memory.FIRST_CAPACITY", 16)
    monkeypatch.setattr("model.memory_pairs.PAIRS_PER_ROW", 1)
    config, sizes = ModelConfig(memory_neighbours=8), list[int]()
    there, here = Memory(config, RULES, device=CPU, group=GROUP), Memory(config, RULES)
    for each in (there, here):
        each.arrays.clock[0] = 64 * GROUP
    for seed, (num_rows, gone) in enumerate(((12, [3, 4, 5]), (40, [6, 7]), (80, []))):
        stream = replace(STREAM, num_rows=num_rows, num_users=1, seed=seed)
        events, logits = stream.events(), stream.logits()
        for each in (there, here):
            each.grow(num_rows)
        there.learn_together(events, torch.from_numpy(logits)).wait()
        reference.memory_learn_grouped(here.arrays, num_rows, events, logits, RULES, GROUP)
        sizes.append(there.arrays.num_pairs)
        assert_same_memory(there.arrays, here.arrays)
        for each in (there, here):
            each.forget(np.array(gone, np.int64))
    assert sizes == [16, 64, 128]
    assert np.count_nonzero(there.arrays.pair_count) > 20
    assert there.arrays.hour.any()


def test_a_memory_without_pairs_or_times_of_day_is_refused() -> None:
    for sizes in ((0, NUM_HOURS), (32, 0)):
        memory = MemoryArrays.empty(8, 8, NUM_BUCKETS, 0, 1, *sizes)
        with pytest.raises(ValueError, match="counts pairs and times of day"):
            DeviceMemory(memory, RULES, CPU, GROUP)


def tiny_learner(num_features: int = 0, **switches: Any) -> Learner:
    model = ModelConfig(num_layers=1, model_width=16, num_heads=1, qk_width=16, value_width=16, item_width=16,
                        num_positions=32, num_time_buckets=8, max_context=8, memory_neighbours=8,
                        num_features=num_features)  # fmt: skip
    return Learner(model, TrainerConfig(device="cpu", memory_group=GROUP, **switches), "cpu")


def test_a_repeat_is_a_miss_where_repeats_are_left_out() -> None:
    """Until the stream has many, as its clock on the device says."""
    learner, told = tiny_learner(), list[tuple[bool, int]]()

    def meet(batch: JaggedBatch, rank_S: NDArray[np.int64], _: int) -> None:
        ranks = zip(repeats_of(batch), rank_S.tolist(), strict=True)
        told.extend((is_repeat, rank) for is_repeat, rank in ranks if rank >= 0)

    learner.scoring.evaluator.on_ranked = meet
    examples, leaves_out = synthetic_examples(4, 12, 12, 3, 12), list[bool]()
    for _ in range(4):
        begin = len(told)
        learner.step(list(islice(examples, 4)))
        learner.scoring.settle()
        assert learner.memory.leaves_out == learner.memory.leaves_out_repeats
        leaves_out.append(learner.memory.leaves_out)
        hits = [rank > 0 for is_repeat, rank in told[begin:] if is_repeat]
        assert not (leaves_out[-1] and any(hits))
    assert not all(leaves_out)
    assert any(is_repeat and rank > 0 for is_repeat, rank in told)


def with_features(example: Example) -> Example:
    """The example with two features of its items, of which the second has many values."""
    rows = example.interactions
    feature = 1 + np.stack([rows.item_hash % 3, rows.item_hash % 97], axis=1)
    return replace(example, rows=rows_of(replace(rows, feature_hash=feature)))


def test_a_server_scores_as_the_trainer_whose_memory_is_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a base, a delta with new groups for which there was no room, and what the trainer learned in between."""
    monkeypatch.setattr("model.memory_room.FIRST_GROUPS", 2)
    examples = map(with_features, synthetic_examples(4, 30, 12, 3, 12))
    learner, reader = tiny_learner(2), Memory(ModelConfig(memory_neighbours=8, num_features=2))
    for step in range(3):
        learner.step(list(islice(examples, 4)))
        reader.apply(learner.memory.changes(everything=step == 0), is_base=step == 0)
        learner.memory.mark_published()
    asked = events_at_once([0], [0], [[1, 2, 3]], [[]])
    there, here = np.zeros((2, 1, learner.memory.num_rows), np.float32)
    learner.memory.score(asked, there)
    reader.score(asked, here)
    np.testing.assert_array_equal(here, there)
    assert len(np.unique(learner.memory.arrays.group[:, 1])) > 4
    assert learner.memory.arrays.group_count.any(axis=(1, 2)).all()
    first, gain = MemoryArrays.empty(1, 1, 8).gain, learner.memory.arrays.gain
    for name in ("lift", "hourly", *PAIRED):
        assert (gain[:, FEATURES.index(name)] != first[:, FEATURES.index(name)]).any(), name


def test_a_trainer_resumed_from_what_the_host_got_learns_on_to_the_same_bits() -> None:
    examples = map(with_features, synthetic_examples(4, 30, 12, 3, 12))
    batches = [list(islice(examples, 4)) for _ in range(3)]
    whole, resumed = tiny_learner(2), tiny_learner(2)
    for batch in batches[:2]:
        whole.step(batch)
        resumed.step(batch)
    resumed.memory.load_state_dict({name: value.copy() for name, value in resumed.memory.state_dict().items()})
    whole.step(batches[2])
    resumed.step(batches[2])
    for name, value in whole.memory.state_dict().items():
        np.testing.assert_array_equal(value, resumed.memory.state_dict()[name], err_msg=name)
    assert whole.metrics.ranks[0, 0, 0] > 0
    assert (whole.memory.arrays.after > 0).any()


def test_a_memory_is_copied_to_the_gpu_anew_when_the_old_copy_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is after values gave their numbers back."""
    monkeypatch.setattr("model.memory_groups.MOST_GROUPS", 4)
    monkeypatch.setattr("model.memory_groups.GIVEN_BACK", 2)
    copies, num_alive, first_init = list[weakref.ref[DeviceMemory]](), list[int](), DeviceMemory.__init__

    def init(self: DeviceMemory, *arguments: Any) -> None:
        num_alive.append(sum(each() is not None for each in copies))
        copies.append(weakref.ref(self))
        first_init(self, *arguments)

    monkeypatch.setattr(DeviceMemory, "__init__", init)
    learner, examples = tiny_learner(2, evict_every_steps=1), map(with_features, synthetic_examples(4, 30, 12, 3, 12))
    for _ in range(3):
        learner.step(list(islice(examples, 4)))
    assert num_alive == [0, 0, 0]
