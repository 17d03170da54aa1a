"""The batch builder against a loop over interactions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from model.config import ModelConfig
from tests.trainer.samples import MODEL, World, columns, cut, example
from trainer.batch import JaggedBatch, build_batch, take_interactions
from wire.example import Example

NAMES = [
    "starts",
    "item",
    "bits",
    "time",
    "domain",
    "value",
    "feature",
    "owner",
    "target",
    "previous",
    "age",
    "query",
    "kinds",
]


def build_slowly(examples: Sequence[Example], config: ModelConfig) -> dict[str, list[object]]:
    out: dict[str, list[object]] = {name: [] for name in NAMES}
    out["starts"].append(0)
    for owner, each in enumerate(examples):
        total, first_new = len(each.interactions), len(each.interactions) - each.num_new
        kept = range(max(0, first_new - config.max_context), total)
        for index in kept:
            past = each.interactions
            if index >= first_new:
                out["target"].append(len(out["item"]))
                out["previous"].append(len(out["item"]) - 1 if index > kept[0] else -1)
                out["age"].append(each.first_new_index + index - first_new)
            out["item"].append(int(past.item_hash[index]))
            out["bits"].append(int(past.action_bits[index]))
            out["time"].append(int(past.timestamp_ms[index]))
            out["domain"].append(int(past.domain_hash[index]))
            out["value"].append(float(past.value[index]))
            out["feature"].append(past.feature_hash[index].tolist())
            out["owner"].append(owner)
            out["query"].append(int(past.timestamp_ms[min(index + 1, total - 1)]))
            out["kinds"].append([float(past.action_bits[index] >> bit & 1) for bit in range(len(config.kinds))])
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
        "target": batch.target_R.tolist(),
        "previous": batch.previous_R.tolist(),
        "age": batch.age_R.tolist(),
        "query": batch.query_time_n.tolist(),
        "kinds": batch.kinds_nK.tolist(),
    }


def assert_same_columns(left: dict[str, list[object]], right: dict[str, list[object]]) -> None:
    assert left.keys() == right.keys()
    for name, column in left.items():
        np.testing.assert_array_equal(column, right[name], name)


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_what_a_loop_over_interactions_makes_of_it(seed: int) -> None:
    world = World(seed)
    for _ in range(6):
        examples = world.examples(1 + seed % 7)
        batch = build_batch(examples, MODEL)
        assert_same_columns(columns_of(batch), build_slowly(examples, MODEL))
        kept = [min(len(each.interactions), MODEL.max_context + each.num_new) for each in examples]
        assert batch.num_tokens == 2 * sum(kept)
        assert batch.num_targets == sum(each.num_new for each in examples)


def test_a_long_context_keeps_its_newest_interactions_and_every_new_one() -> None:
    sealed = columns(np.random.default_rng(0), 30, 50)
    batch = build_batch([example(sealed, 14, first_new=100)], MODEL)
    np.testing.assert_array_equal(batch.item_n, sealed.item_hash[-24:])
    np.testing.assert_array_equal(batch.age_R, 100 + np.arange(14))
    np.testing.assert_array_equal(batch.target_R, np.arange(10, 24))


def test_a_user_without_a_past_is_asked_from_nothing() -> None:
    sealed = columns(np.random.default_rng(0), 6, 50)
    batch = build_batch([example(cut(sealed, slice(0, 3)), 3), example(cut(sealed, slice(3, 6)), 2)], MODEL)
    assert batch.previous_R.tolist() == [-1, 0, 1, 3, 4]


def test_an_example_without_new_interactions_has_no_targets() -> None:
    sealed = columns(np.random.default_rng(0), 6, 50)
    batch = build_batch([example(sealed, 0), example(sealed, 1), example(sealed, 0)], MODEL)
    assert batch.target_R.tolist() == [11]
    assert len(batch.item_n) == 18


@pytest.mark.parametrize("seed", range(8))
def test_leaving_interactions_out_is_building_from_what_is_left(seed: int) -> None:
    rng, examples = np.random.default_rng(seed), World(seed).examples(6)
    batch = build_batch(examples, MODEL)
    stays = rng.random(len(batch.item_n)) < 0.6
    stays[batch.target_R] = True
    for owner, each in enumerate(examples):  # an example with nothing new keeps one interaction
        if each.num_new == 0:
            stays[batch.starts_B1[owner]] = True
    left = []
    for owner, each in enumerate(examples):
        kept = stays[batch.starts_B1[owner] : batch.starts_B1[owner + 1]]
        whole = cut(each.interactions, slice(len(each.interactions) - len(kept), None))
        chosen = type(whole)(*(getattr(whole, name)[kept] for name in type(whole).__dataclass_fields__))
        left.append(example(chosen, each.num_new, first_new=each.first_new_index))
    thinned = take_interactions(batch, np.flatnonzero(stays))
    assert_same_columns(columns_of(thinned), build_slowly(left, MODEL))
