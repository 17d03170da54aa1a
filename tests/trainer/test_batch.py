"""The batch builder against a loop over interactions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from kernels.windows import take_ranges, unpack_kinds
from model.config import ModelConfig
from model.kinds import becomes_chosen
from model.tokens import propensities, states
from tests.trainer.samples import KINDS, MODEL, Piece, World, columns, cut, example, pieces_of
from trainer.examples.batch import JaggedBatch, build_batch, take_interactions
from trainer.examples.context import can_thin, shorten
from wire.example import Example
from wire.history import Histories

NAMES = [
    "starts", "item", "bits", "time", "domain", "value", "feature", "owner", "query", "target", "previous", "age",
    "is_new", "learned", "before",
]  # fmt: skip


def build_slowly(
    examples: Sequence[Example], histories: Histories, config: ModelConfig, left_out: frozenset[int] = frozenset()
) -> dict[str, list[object]]:
    """The batch as nested loops build it; ``left_out``: indices of its interactions that are dropped."""
    histories = copy.deepcopy(histories)
    for each in examples:
        histories.gather(each)
    out: dict[str, list[object]] = {name: [] for name in NAMES}
    out["starts"].append(0)
    users: dict[str, list[Piece]] = {}
    for piece in pieces_of(examples):
        users.setdefault(piece.user, []).append(piece)
    number = 0
    for owner, (user, pieces) in enumerate(users.items()):
        targets = {piece.place: piece for piece in pieces}
        history, before = histories.users[user], -1
        first = max(history.start, min(targets) - config.max_context)
        rows, owned = history.rows(first, max(targets) + 1), list[int]()
        for place, row in enumerate(rows, start=first):
            number += 1
            if number - 1 in left_out:
                continue
            owned.append(int(row["time"]))
            if place in targets:
                out["target"].append(len(out["item"]))
                out["previous"].append(before)
                out["age"].append(place)
                out["is_new"].append(targets[place].is_new)
                out["learned"].append(targets[place].bits)
                out["before"].append(int(row["bits"]) & ~targets[place].bits)
            before = len(out["item"])
            for name in ("item", "bits", "time", "domain", "value"):
                out[name].append(row[name].item())
            out["feature"].append(row["features"].tolist())
            out["owner"].append(owner)
        out["query"] += [*owned[1:], owned[-1]]
        out["starts"].append(len(out["item"]))
    return out


def columns_of(batch: JaggedBatch) -> dict[str, list[object]]:
    return {
        "starts": batch.starts_B1.tolist(),
        "item": batch.item_n.tolist(),
        "bits": batch.bits_n.tolist(),
        "time": batch.time_ms_n.tolist(),
        "domain": batch.domain_n.tolist(),
        "value": batch.value_n.tolist(),
        "feature": batch.feature_nF.tolist(),
        "owner": batch.owner_n.tolist(),
        "query": batch.query_time_n.tolist(),
        "target": batch.target_R.tolist(),
        "previous": batch.previous_R.tolist(),
        "age": batch.age_R.tolist(),
        "is_new": batch.is_new_R.tolist(),
        "learned": batch.learned_bits_R.tolist(),
        "before": batch.previous_bits_R.tolist(),
    }


def assert_same_columns(left: dict[str, list[object]], right: dict[str, list[object]]) -> None:
    assert left.keys() == right.keys()
    for name, column in left.items():
        np.testing.assert_array_equal(column, right[name], name)


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_what_a_loop_over_interactions_makes_of_it(seed: int) -> None:
    world, histories = World(seed), Histories(MODEL.max_context)
    for _ in range(12):
        examples = world.examples(1 + 3 * (seed % 4))
        expected = build_slowly(examples, histories, MODEL)
        batch = build_batch(examples, histories, MODEL)
        assert_same_columns(columns_of(batch), expected)
        np.testing.assert_array_equal(batch.kinds_nK, unpack_kinds(batch.bits_n, len(KINDS)))


def test_the_histories_do_not_depend_on_how_examples_are_cut_into_steps() -> None:
    examples = World(1, num_users=2).examples(120)
    one_by_one, together = Histories(MODEL.max_context), Histories(MODEL.max_context)
    for each in examples:
        build_batch([each], one_by_one, MODEL)
    build_batch(examples, together, MODEL)
    assert one_by_one.num_bytes > 0
    for name, history in one_by_one.users.items():
        other = together.users[name]
        assert (history.start, history.end) == (other.start, other.end)
        assert history.rows(0, 1 << 40).tobytes() == other.rows(0, 1 << 40).tobytes()


def test_every_new_interaction_of_a_step_is_there_however_many_there_are() -> None:
    world, histories = World(2, num_users=1), Histories(MODEL.max_context)
    examples = world.examples(60)
    batch = build_batch(examples, histories, MODEL)
    num_new = sum(each.num_new for each in examples)
    assert batch.age_R[batch.is_new_R].tolist() == list(range(num_new))
    assert num_new > 5 * MODEL.max_context
    assert len(histories.users["user 0"].rows(0, 1 << 40)) < 2 * MODEL.max_context


def test_kinds_that_come_in_the_same_step_belong_to_the_new_interaction() -> None:
    rows = columns(np.random.default_rng(0), 2, 50)
    first = replace(rows, action_bits=np.array([1, 1], np.uint32))
    then = replace(rows, action_bits=np.array([3, 5], np.uint32))
    examples = [example(first, 2, user="a"), example(then, 0, user="a", feedback={0: 2, 1: 4})]
    batch = build_batch(examples, Histories(10), MODEL)
    assert batch.is_new_R.tolist() == [True, True]
    assert batch.learned_bits_R.tolist() == [3, 5]
    assert batch.previous_bits_R.tolist() == [0, 0]
    histories = Histories(10)
    build_batch(examples[:1], histories, MODEL)
    later = build_batch(examples[1:], histories, MODEL)
    assert later.is_new_R.tolist() == [False, False]
    assert later.learned_bits_R.tolist() == [2, 4]
    assert later.previous_bits_R.tolist() == [1, 1]


def test_the_first_kind_that_is_wanted_makes_a_target_of_retrieval() -> None:
    kinds = ("impression", "click", "like", "hide")
    steps = [(0, 1, False), (1, 2, True), (3, 4, False), (1, 4, True), (0, 3, True), (0, 8, False), (9, 2, False)]
    before, learned, expected = zip(*steps, strict=True)
    found = becomes_chosen(np.array(before, np.uint32), np.array(learned, np.uint32), ModelConfig(kinds=kinds))
    assert found.tolist() == list(expected)
    config = ModelConfig(kinds=("impression", "hide"))
    only = becomes_chosen(np.array([0, 1], np.uint32), np.array([1, 2], np.uint32), config)
    assert only.tolist() == [True, False], "where no kind is wanted, all are"


def test_a_long_context_keeps_its_newest_interactions_and_every_new_one() -> None:
    rows = columns(np.random.default_rng(0), 130, 50)
    batch = build_batch([example(rows, 14)], Histories(10), MODEL)
    np.testing.assert_array_equal(batch.item_n, rows.item_hash[-24:])
    np.testing.assert_array_equal(batch.age_R, 116 + np.arange(14))
    np.testing.assert_array_equal(batch.target_R, np.arange(10, 24))
    short = shorten(batch, 3)
    np.testing.assert_array_equal(short.item_n, rows.item_hash[-17:])
    np.testing.assert_array_equal(short.target_R, np.arange(3, 17))


@pytest.mark.parametrize("seed", range(4))
def test_a_shorter_context_is_the_batch_built_with_it(seed: int) -> None:
    world, histories = World(seed), Histories(MODEL.max_context)
    build_batch(world.examples(30), histories, MODEL)
    examples = world.examples(12)
    few = replace(MODEL, max_context=4)
    expected = build_slowly(examples, histories, few)
    assert_same_columns(columns_of(shorten(build_batch(examples, histories, MODEL), 4)), expected)


def test_a_user_without_a_past_is_asked_from_nothing() -> None:
    rows = columns(np.random.default_rng(0), 6, 50)
    examples = [example(cut(rows, slice(0, 3)), 3), example(cut(rows, slice(3, 6)), 2)]
    batch = build_batch(examples, Histories(10), MODEL)
    assert batch.previous_R.tolist() == [-1, 0, 1, 3, 4]


def test_an_example_that_teaches_nothing_has_no_place_in_the_batch() -> None:
    rows = columns(np.random.default_rng(0), 6, 50)
    batch = build_batch([example(rows, 0), example(rows, 1), example(rows, 0)], Histories(10), MODEL)
    assert batch.target_R.tolist() == [5]
    assert len(batch.item_n) == 6
    assert build_batch([example(rows, 0)], Histories(10), MODEL).num_targets == 0


def test_rows_that_never_came_are_left_out() -> None:
    rows, histories = columns(np.random.default_rng(0), 12, 50), Histories(10)
    build_batch([example(cut(rows, slice(0, 4)), 4, user="a", segment=0, segment_len=4)], histories, MODEL)
    batch = build_batch(
        [example(cut(rows, slice(8, 11)), 2, user="a", segment=2, segment_len=4)], histories, MODEL
    )  # fmt: skip
    np.testing.assert_array_equal(batch.item_n, rows.item_hash[[0, 1, 2, 3, 8, 9, 10]])
    assert batch.target_R.tolist() == [5, 6]
    assert batch.age_R.tolist() == [9, 10]


@pytest.mark.parametrize("seed", range(8))
def test_leaving_interactions_out_is_building_from_what_is_left(seed: int) -> None:
    rng, world, histories = np.random.default_rng(seed), World(seed), Histories(MODEL.max_context)
    build_batch(world.examples(20), histories, MODEL)
    examples = world.examples(6)
    before = copy.deepcopy(histories)
    batch = build_batch(examples, histories, MODEL)
    stays = rng.random(len(batch.item_n)) < 0.6
    stays[batch.target_R] = True
    thinned = take_interactions(batch, np.flatnonzero(stays))
    left_out = frozenset(np.flatnonzero(~stays).tolist())
    assert_same_columns(columns_of(thinned), build_slowly(examples, before, MODEL, left_out))


@pytest.mark.parametrize("num_user_tokens", [0, 1])
@pytest.mark.parametrize("num_features", [0, 2])
@pytest.mark.parametrize("has_propensity", [False, True])
def test_ranges_of_columns_of_any_width_are_what_slices_say(
    num_features: int, num_user_tokens: int, has_propensity: bool
) -> None:
    """A slice without columns, as of what a deployment does not have, has the strides of what it was cut from."""
    num, width = 100, num_features + has_propensity + num_user_tokens
    features = np.arange(num * width).reshape(num, width)
    config = ModelConfig(kinds=KINDS, num_features=num_features, propensity=has_propensity)
    given = [np.arange(num), features[:, :num_features], states(features, config), propensities(features, config),
             features[:, width:], np.arange(num, dtype=np.uint32)]  # fmt: skip
    given[1] = np.ascontiguousarray(given[1])
    begin, length = np.array([5, 60]), np.array([20, 7])
    places = np.r_[5:25, 60:67]
    for each, taken in zip(given, take_ranges(given, begin, length), strict=True):
        np.testing.assert_array_equal(taken, each[places])


@pytest.mark.parametrize(
    ("alpha", "num_trained", "thins"),
    [(0.0, 200, False), (1.3, 16, False), (1.6, 16, False), (1.6, 200, True), (2.0, 200, False), (1.05, 16, True)],
)
def test_contexts_that_are_short_already_are_not_thinned(alpha: float, num_trained: int, *, thins: bool) -> None:
    assert can_thin(num_trained, 200, alpha) is thins


@pytest.mark.parametrize("last", ["teaches", "teaches nothing"])
def test_what_a_gap_within_a_step_has_parted_from_its_history_is_no_other_users_target(last: str) -> None:
    rng, num_new = np.random.default_rng(0), 4 if last == "teaches" else 0
    others = [example(columns(rng, 40, 50), 40, user=user, number=number) for number, user in enumerate("ac")]
    before = example(columns(rng, 3, 50), 3, user="b", number=2, segment_len=8)
    after = example(columns(rng, 4, 50), num_new, user="b", number=3, segment=5, segment_len=8)
    batch = build_batch([others[0], before, others[1], after], Histories(MODEL.max_context), MODEL)
    expected = build_batch([others[0], *([after] if num_new else []), others[1]], Histories(MODEL.max_context), MODEL)
    for name in ("starts_B1", "target_R", "owner_R", "age_R", "is_new_R", "item_n"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), name)
    assert (np.diff(batch.target_R) > 0).all()
