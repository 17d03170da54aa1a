"""Tables that grow, admit and evict, against dicts; and their role in the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.row_types import as_float32
from model.distinct import counted
from model.embedding import EmbeddingTable
from model.row_store import PRECISIONS
from model.share import Share
from tests.trainer.samples import MODEL, TRAINER, assert_same_arrays, columns, example
from trainer.learner.step import Learner
from trainer.network.frequency import FrequencyEstimator

pytestmark = pytest.mark.usefixtures("one_thread")
Calls = list[tuple[str, list[int]]]
calls = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.lists(st.integers(0, 12), min_size=1, max_size=8)),
        st.tuples(st.just("evict"), st.lists(st.integers(1, 4), min_size=1, max_size=1)),
        st.tuples(st.just("publish"), st.just([])),
    ),
    max_size=25,
)


def table(
    width: int = 4, admit_after: int = 1, salt: int = 1, seed: int = 3, precision: str = "float32"
) -> EmbeddingTable:
    return EmbeddingTable(width, init_std=0.1, seed=seed, salt=salt, admit_after=admit_after, precision=precision)


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_live_rows_are_found_by_place_whatever_rows_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.embedding.BLOCK_ROWS", 8)
    ours, rng = table(), np.random.default_rng(0)
    for now in range(1, 30):
        ours.insert(rng.integers(1, 400, 25), now, now)
        ours.evict(now - 3)
        ours.block(rng.integers(1, 400, 2))
        restored = table()
        restored.load_state_dict(ours.state_dict())
        for each in (ours, restored):
            place_N = rng.integers(0, each.num_live, 50)
            np.testing.assert_array_equal(each.live_at(place_N), each.live_rows()[place_N])
    assert ours.num_live < ours.num_rows - 1


@given(what=calls, admit_after=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_a_reader_that_follows_the_changes_has_the_table(what: Calls, admit_after: int) -> None:
    ours, reader, row_of = table(admit_after=admit_after), dict[int, np.ndarray](), dict[int, int]()
    sightings, last_seen, now = Counter[int](), dict[int, int](), 0
    for name, values in what:
        now += 1
        if name == "insert":
            rows = ours.insert(keys(*values), now, step=now)
            for key, row in zip(values, rows.tolist(), strict=True):
                if not key:
                    assert row == 0
                    continue
                sightings[key], last_seen[key] = sightings[key] + 1, now
                assert (row > 0) == (sightings[key] >= admit_after)
                row_of.update({key: row} if row else {})
            learned = np.unique(rows)
            ours.learn(learned, torch.ones(len(learned), 4), lr=0.1, step=0)
        elif name == "evict":
            gone = {key for key, seen in last_seen.items() if seen < now - values[0]}
            rows = ours.evict(now - values[0])
            assert set(rows.tolist()) == {row_of[key] for key in gone if key in row_of}
            for key in gone:
                row_of.pop(key, None), sightings.pop(key), last_seen.pop(key)
        else:
            ids, rows, weights, tombstones = ours.changes(everything=False)
            ours.mark_published()
            for key in tombstones.tolist():
                reader.pop(key, None)
            reader.update(zip(ids.tolist(), weights, strict=True))
            assert set(reader) == {0, *row_of}
            for key, row in row_of.items():
                np.testing.assert_array_equal(reader[key], ours.weight[row])
        assert len(set(row_of.values())) == len(row_of) == ours.num_live
        assert sorted(row_of.values()) == ours.live_rows().tolist()
        assert ours.live_at(np.arange(ours.num_live)).tolist() == ours.live_rows().tolist()


def test_a_table_grows_and_keeps_every_row_it_had() -> None:
    ours = table()
    first = ours.insert(np.arange(1, 41), 0, 0)
    before = ours.weight[torch.from_numpy(first)].clone()
    ours.learn(first[:3], torch.ones(3, 4), 0.1, 0)
    state = ours.state[:41].clone()
    ours.insert(np.arange(41, 5001), 0, 1)
    assert ours.num_rows == 5001
    assert torch.equal(ours.weight[4:41], before[3:])
    assert torch.equal(ours.state[:41], state)
    assert ours.lookup(np.arange(1, 41)).tolist() == first.tolist()


def test_keys_without_a_row_read_the_cold_row() -> None:
    ours = table(admit_after=2)
    assert ours.insert(keys(5, 0, 6, 5), 0, 0).tolist() == [0, 0, 0, 1]
    assert ours.lookup(keys(5, 6, 7, 0)).tolist() == [1, 0, 0, 0]
    assert ours.keys_of(keys(1, 0)).tolist() == [5, 0]


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_a_table_of_16_bits_is_read_as_float32(precision: str, dtype: torch.dtype) -> None:
    exact, ours = table(), table(precision=precision)
    rows = exact.insert(np.arange(1, 41), 0, 0)
    assert ours.insert(np.arange(1, 41), 0, 0).tolist() == rows.tolist()
    assert ours.weight.dtype == dtype
    assert ours.weight.element_size() == 2
    first = exact.weight[: ours.num_rows].to(dtype).float()
    for read in (torch.from_numpy(ours.read(np.arange(41))[0]), ours.gather(np.arange(41)).detach()):
        assert read.dtype == torch.float32
        assert torch.equal(read, first)
    np.testing.assert_array_equal(as_float32(ours.store.array)[:41], first.numpy())
    for each in (exact, ours):
        each.learn(rows[::2], torch.ones(20, 4), 0.1, 5)
    np.testing.assert_array_equal(ours.state[:41], exact.state[:41])
    change = ours.read(np.arange(41))[0] - exact.read(np.arange(41))[0]
    assert 0 < np.abs(change).max() < 0.002
    for salt, seed, step in ((1, 3, 5), (2, 3, 5), (1, 4, 5), (1, 3, 6)):
        other = table(precision=precision, salt=salt, seed=seed)
        other.put(np.arange(41), ours.live[:41], first, None)
        other.learn(rows[::2], torch.ones(20, 4), 0.1, step)
        same = torch.equal(other.weight[:41], ours.weight[:41])
        assert same == ((salt, seed, step) == (1, 3, 5)), "each table and step has random bits of its own"


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_rows_are_finite_unless_one_is_not(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where their sum is beyond the range of float16."""
    monkeypatch.setattr("model.row_store.BLOCK_ROWS", 8)
    ours = table(precision=precision)
    rows = ours.insert(np.arange(1, 41), 0, 0)
    ours.put(rows, ours.live[rows], torch.full((40, 4), 60_000.0), None)
    assert ours.is_finite()
    ours.put(rows[-1:], ours.live[rows[-1:]], torch.full((1, 4), 1e5), None)
    assert ours.is_finite() == (precision != "float16"), "float16 ends at 65,504"
    ours.put(rows[-1:], ours.live[rows[-1:]], torch.full((1, 4), float("nan")), None)
    assert not ours.is_finite()
    whole = ours.read(np.arange(41))
    for share in (Share(), Share(0, 2), Share(1, 2)):
        ours.store.hold(share, *(column[share.rows(41)] for column in whole))
        is_finite = [ours.store.is_finite(first, min(41, first + 10)) for first in range(0, 41, 10)]
        assert is_finite == [True] * 4 + [not share.is_own(rows[-1:])[0]], "asked in parts, the last of which is not"


def test_a_freed_row_starts_anew_for_the_next_key() -> None:
    ours = table()
    rows = ours.insert(keys(5, 6), 100, 0)
    ours.learn(rows, torch.ones(2, 4), 0.5, 0)
    ours.insert(keys(6), 200, 1)
    assert ours.evict(150).tolist() == [1]
    assert ours.tombstones == [5]
    assert not ours.weight[1].any()
    assert ours.insert(keys(7), 300, 2).tolist() == [1]
    assert ours.state[1] == 0
    assert ours.weight[1, :-1].abs().min() > 0
    assert ours.weight[1, -1] == 0


def test_first_rows_depend_on_seed_table_and_step_and_on_nothing_else() -> None:
    def rows(salt: int = 1, seed: int = 3, step: int = 0) -> torch.Tensor:
        made = table(salt=salt, seed=seed)
        return made.weight[torch.from_numpy(made.insert(keys(1, 2, 3), 0, step))]

    assert torch.equal(rows(), rows())
    for other in (rows(salt=2), rows(seed=4), rows(step=1)):
        assert not torch.equal(rows(), other)


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_a_loaded_table_is_the_saved_one(precision: str) -> None:
    ours, other = (table(admit_after=2, precision=precision) for _ in range(2))
    for now in range(6):
        rows = np.unique(ours.insert(np.arange(now, 40 * now), now, now))
        ours.learn(rows, torch.randn(len(rows), 4), 0.1, 0)
    ours.mark_published()
    ours.evict(3)
    ours.insert(keys(7, 7, 1000, 1000), 7, 7)
    other.insert(np.arange(300, 900).repeat(2), 0, 0)  # loading replaces what was there
    other.load_state_dict({name: array.copy() for name, array in ours.state_dict().items()})
    assert_same_arrays(ours.state_dict(), other.state_dict())
    more = np.array([3, 2000, 2000, 9, 1], np.int64)
    np.testing.assert_array_equal(ours.insert(more, 9, 9), other.insert(more, 9, 9))
    assert_same_arrays(ours.state_dict(), other.state_dict())


def test_domains_and_features_get_rows_and_change_predictions_and_are_learned() -> None:
    learner, past = Learner(MODEL, TRAINER), columns(np.random.default_rng(0), 5, 30)
    past = replace(past, domain_hash=keys(71, 71, 0, 72, 72), feature_hash=np.arange(10).reshape(5, 2))
    for number in range(2):  # only after the first step does ranking use the network at all
        learner.step([example(past, 5, user=f"user {number}", number=number, user_feature=99)])
    assert set(learner.domains.keys_of(learner.domains.live_rows()).tolist()) == {71, 72}
    assert set(learner.features.keys_of(learner.features.live_rows()).tolist()) == {*range(1, 10), 99}
    for ours in (learner.domains, learner.features):
        assert ours.state[torch.from_numpy(ours.live_rows())].min() > 0  # each got a gradient
        first = ours.weight[torch.from_numpy(ours.live_rows())]
        assert len(np.unique(first.numpy(), axis=0)) == len(first)  # no two rows are equal


def test_domains_are_left_out_when_told_so() -> None:
    learner = Learner(replace(MODEL, use_domain=False), TRAINER)
    learner.step([example(columns(np.random.default_rng(0), 5, 30), 5)])
    assert learner.domains.num_live == 0


@pytest.mark.parametrize("half_life", [5.0, 300.0])
def test_the_frequency_of_an_item_is_its_share_of_a_decayed_recount(half_life: float) -> None:
    rng, ours, weights = np.random.default_rng(0), FrequencyEstimator(half_life), np.zeros(200)
    for _ in range(20):
        rows = np.minimum(rng.geometric(0.05, rng.integers(0, 12)), 199)
        ours.add(*counted(rows))
        np.add.at(weights, rows, 1.0)
        weights *= 0.5 ** (len(rows) / half_life)
        np.testing.assert_allclose(ours.share(np.arange(200)), weights / max(weights.sum(), 1e-300), atol=1e-12)
    other = FrequencyEstimator(half_life)
    other.load_state_dict(ours.state_dict())
    np.testing.assert_array_equal(other.share(np.arange(300)), ours.share(np.arange(300)))
