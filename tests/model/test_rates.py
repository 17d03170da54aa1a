"""Rates against a full recount, and as a server gets them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kernels.odds import OddsEvents
from model.config import ModelConfig
from model.rates import Rates, done_before
from wire.errors import VersionError

MODEL = ModelConfig(kinds=("click", "like"), num_features=2, num_user_features=1)


def events_of(rows: np.ndarray, bits: np.ndarray, is_new: np.ndarray, rng: np.random.Generator) -> OddsEvents:
    """Of users without a past."""
    num, none = len(rows), np.zeros(0, np.int64)
    begin = np.zeros(num, np.int64)
    return OddsEvents(
        rows.astype(np.int32), rows, rng.integers(0, 90, (num, 4)).astype(np.int32),
        rng.normal(size=(num, 2)).astype(np.float32), bits.astype(np.uint32), is_new.astype(np.uint8), np.arange(num),
        none, none.astype(np.uint32), begin, begin,
    )  # fmt: skip


def some(step: int, rng: np.random.Generator, late: float = 0.0) -> OddsEvents:
    return events_of(rng.integers(0, 20 + 30 * step, 12), rng.integers(0, 4, 12), rng.random(12) >= late, rng)


@pytest.mark.parametrize("seed", range(3))
def test_rates_are_those_of_a_recount(seed: int) -> None:
    rng, baseline = np.random.default_rng(seed), Rates(MODEL)
    shown, done = Counter[int](), dict[int, np.ndarray]()
    for step in range(8):
        events = some(step, rng, late=0.3)
        rows = events.row_R.astype(np.int64)
        total = sum(shown.values())
        prior = (sum(done.values(), np.zeros(2)) + 1) / (total + 2)
        expected = [(done.get(row, np.zeros(2)) + 10 * prior) / (shown[row] + 10) for row in rows.tolist()]
        np.testing.assert_allclose(baseline.predict(rows), expected)
        baseline.learn(events)
        for row, bits, new in zip(rows.tolist(), events.bits_R.tolist(), events.is_new_R.tolist(), strict=True):
            shown[row] += new
            done[row] = done.get(row, np.zeros(2)) + np.array([bits & 1, bits >> 1])
        gone = int(rows[0])
        baseline.forget(np.array([gone]))
        shown[gone], done[gone] = 0, np.zeros(2)


def test_a_users_own_rate_counts_what_he_did_before_the_target() -> None:
    bits = np.array([0b01, 0b11, 0b10, 0b11], np.uint32)
    done, num = done_before(bits, 2, np.array([0, 3, 4]), np.array([0, 0, 1]), np.array([0, 2, 3]))
    assert done.tolist() == [[0, 0], [2, 1], [0, 0]]
    assert num.tolist() == [0, 2, 0]


def test_a_kind_that_often_comes_late_is_left_to_the_network() -> None:
    rng, rates = np.random.default_rng(0), Rates(MODEL)
    for step in range(40):
        events = some(step % 8, rng, late=0.5)
        late = events.is_new_R == 0
        rates.learn(replace(events, bits_R=np.where(late, events.bits_R & 1, events.bits_R & 2).astype(np.uint32)))
    assert rates.late_kinds.tolist() == [True, False]
    events = some(0, rng)
    for said in (rates.score(events), rates.learn(events)):
        np.testing.assert_array_equal(said[:, 0], events.network_RK[:, 0])
        assert not (said[:, 1] == events.network_RK[:, 1]).any()
    for _ in range(3000):  # ten thousand events later it comes at once
        rates.learn(some(0, rng))
    assert rates.late_kinds.tolist() == [False, False]


def forgets_evicted_rows(trainer: Rates, rows: np.ndarray) -> None:
    """Broken: no version says that a row was evicted."""
    trainer.forget(rows)
    trainer.arrays.item_dirty_V[rows] = 0


def keeps_its_weights(changes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Broken: a delta carries the weights of the first."""
    return changes | {"gain_FK": np.zeros_like(changes["gain_FK"])}


@pytest.mark.parametrize("broken", ["", "evicts in silence", "weights"])
def test_a_server_says_what_its_trainer_says_through_bases_deltas_and_evictions(broken: str) -> None:
    rng, trainer, server = np.random.default_rng(0), Rates(MODEL), Rates(MODEL)
    differed = False
    for step in range(12):
        events = some(step, rng)
        trainer.learn(events)
        gone = events.row_R[:2].astype(np.int64)
        (forgets_evicted_rows if broken == "evicts in silence" else Rates.forget)(trainer, gone)
        is_base = step in (0, 7)
        changes = trainer.changes(everything=is_base)
        server.apply(keeps_its_weights(changes) if broken == "weights" else changes, is_base=is_base)
        trainer.mark_published()
        every = events_of(np.arange(400), np.zeros(400, np.int64), np.ones(400), rng)
        said = [each.score(every) for each in (trainer, server, server.copy())]
        np.testing.assert_array_equal(said[1], said[2])
        differed |= not np.array_equal(said[0], said[1])
    assert differed == bool(broken)


def test_a_trainer_goes_on_from_what_is_published_and_from_its_own_state() -> None:
    rng, first = np.random.default_rng(0), Rates(MODEL)
    for step in range(4):
        first.learn(some(step, rng))
    resumed, follower, reader = Rates(MODEL), Rates(MODEL), Rates(MODEL)
    resumed.load_state_dict(first.state_dict())
    reader.apply(first.changes(everything=True), is_base=True)
    follower.adopt(reader)
    events = some(4, rng)
    np.testing.assert_array_equal(follower.score(events), first.score(events))
    np.testing.assert_array_equal(resumed.learn(events), first.learn(events))
    np.testing.assert_array_equal(resumed.score(events), first.score(events))


def test_what_another_build_or_model_has_published_is_refused_in_words() -> None:
    older = {"row_index": np.arange(2), "shown": np.ones(2), "done": np.ones((2, 2)), "totals": np.ones(3)}
    with pytest.raises(VersionError, match="another build has published this version"):
        Rates(MODEL).apply(older, is_base=True)
    with pytest.raises(VersionError, match="rates: expected"):
        Rates(MODEL).apply(Rates(replace(MODEL, num_features=0)).changes(everything=True), is_base=True)
