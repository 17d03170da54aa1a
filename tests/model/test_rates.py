"""Rates against a full recount, and as a server gets them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from kernels.beside import Beside
from kernels.odds import OddsArrays, OddsEvents
from kernels.odds.arrays import LEAST_RATE
from model.arrivals import Arrivals
from model.config import ModelConfig
from model.kept import KeptInputs
from model.kinds import done_before
from model.rates import Rates
from wire.errors import VersionError

MODEL = ModelConfig(kinds=("click", "like"), num_features=2, num_user_features=1)


def events_of(rows: np.ndarray, bits: np.ndarray, is_new: np.ndarray, rng: np.random.Generator) -> OddsEvents:
    """Of users without a past."""
    num, none = len(rows), np.zeros(0, np.int64)
    begin = np.zeros(num, np.int64)
    attribute_RA = np.append(rng.integers(0, 90, (num, 4)), rng.integers(0, 32, (num, 1)), axis=1)
    return OddsEvents(
        rows.astype(np.int32), rows, attribute_RA.astype(np.int32),
        rng.normal(size=(num, 2)).astype(np.float32), bits.astype(np.uint32), is_new.astype(np.uint8), np.arange(num),
        none, none.astype(np.uint32), begin, begin, rng.integers(0, 3, (num, 3)), np.zeros((0, 3), np.int64),
        np.full(num, -1, np.int32),
    )  # fmt: skip


def keys(step: int) -> np.ndarray:
    """Of the 12 interactions of a step."""
    return np.arange(12) + 12 * step


def learn(rates: Rates, events: OddsEvents, key_R: np.ndarray) -> np.ndarray:
    return rates.learn(events, rates.arrivals.number(key_R, events.is_new_R > 0))


def some(step: int, rng: np.random.Generator, late: float = 0.0) -> OddsEvents:
    return events_of(rng.integers(0, 20 + 30 * step, 12), rng.integers(0, 4, 12), rng.random(12) >= late, rng)


@pytest.mark.parametrize("seed", range(3))
def test_rates_are_those_of_a_recount(seed: int) -> None:
    rng, baseline = np.random.default_rng(seed), Rates(MODEL)
    shown, done, all_shown, all_done = Counter[int](), dict[int, np.ndarray](), 0, np.zeros(2)
    for step in range(8):
        events = some(step, rng, late=0.3)
        rows = events.row_R.astype(np.int64)
        prior = np.minimum((all_done + 1) / (all_shown + 2), 1 - LEAST_RATE)
        expected = [(done.get(row, np.zeros(2)) + 10 * prior) / (shown[row] + 10) for row in rows.tolist()]
        np.testing.assert_allclose(baseline.predict(rows), expected)
        learn(baseline, events, keys(step))
        for row, bits, new in zip(rows.tolist(), events.bits_R.tolist(), events.is_new_R.tolist(), strict=True):
            shown[row], all_shown = shown[row] + new, all_shown + new
            had, came = done.get(row, np.zeros(2)), np.array([bits & 1, bits >> 1])
            done[row] = np.maximum(had, np.minimum(had + came, shown[row]))
            all_done = all_done + came
        gone = int(rows[0])
        baseline.forget(np.array([gone]))
        shown[gone], done[gone] = 0, np.zeros(2)


class Watched(Beside):
    """Counts how often it was waited for."""

    waits = 0

    def wait(self) -> int:
        self.waits += 1
        return super().wait()


ASKED: dict[str, Callable[[Rates], object]] = {
    "rates": lambda rates: rates.predict(np.arange(5)),
    "priors": lambda rates: rates.prior(np.arange(5), np.ones((5, 2)), np.ones(5)),
    "when to learn": lambda rates: rates.horizon,
    "whether anything was learned": lambda rates: rates.has_learned(3),
    "which kinds are late": lambda rates: rates.late_kinds,
    "to forget a row": lambda rates: rates.forget(np.arange(3)),
    "to grow": lambda rates: rates.grow("item", 900),
    "a version": lambda rates: rates.changes(everything=True),
    "what a checkpoint holds besides rows": lambda rates: rates.small(),
    "the kept inputs": lambda rates: rates.kept.columns,
    "whether all is finite": lambda rates: rates.is_finite,
    "a copy": lambda rates: rates.copy(),
}


@pytest.mark.parametrize("what", ASKED)
def test_whoever_asks_for_rates_waits_for_those_that_are_learned_beside(what: str) -> None:
    rng, beside = np.random.default_rng(0), Watched()
    there, here, events = Rates(MODEL), Rates(MODEL), [some(step, rng, late=0.3) for step in range(2)]
    for step, each in enumerate(events):
        expected = learn(here, each, keys(step))
        numbers = there.arrivals.number(keys(step), each.is_new_R > 0)
        coming = there.begin(each, numbers, beside)
        if step:
            assert beside.waits == 1, "it is not waited for before anybody asks"
            ASKED[what](there)
            assert beside.waits == 2
            ASKED[what](here)
        np.testing.assert_array_equal(coming(), expected)
    for name, array in here.state_dict().items():
        np.testing.assert_array_equal(there.state_dict()[name], array, err_msg=name)


def test_whoever_asks_is_told_why_events_could_not_be_learned_beside() -> None:
    rates, each = Rates(MODEL), some(0, np.random.default_rng(0), late=0.3)
    each.row_R[-1] = -1
    logits = rates.begin(each, rates.arrivals.number(keys(0), each.is_new_R > 0), Beside())
    for ask in (lambda: rates.arrays, lambda: rates.is_finite, logits, logits):
        with pytest.raises(IndexError, match="row_R: expected"):
            ask()


def test_items_that_leave_before_their_late_kinds_come_do_not_raise_the_overall_rate() -> None:
    rng, rates = np.random.default_rng(0), Rates(MODEL)
    for day in range(60):
        rows, bits = np.arange(1, 41), (rng.random(40) < 0.1).astype(np.uint32)
        learn(rates, events_of(rows, np.where(rows % 4, bits, 0), np.ones(40), rng), 40 * day + rows)
        rates.forget(rows)
        late = rows[(rows % 4 == 0) & (bits > 0)]
        learn(rates, events_of(late, np.ones(len(late)), np.zeros(len(late)), rng), 40 * day + late)
    num, *done = rates.arrays.total_C.tolist()
    assert num == 60 * 40
    assert 0.07 < done[0] / num < 0.13


def test_late_kinds_of_interactions_before_the_stream_leave_every_prior_finite() -> None:
    """A new line of training may begin with examples that only add kinds."""
    rng, rates = np.random.default_rng(0), Rates(MODEL)
    learn(rates, events_of(np.arange(12), np.full(12, 3), np.zeros(12), rng), keys(0))
    assert np.isfinite(rates.prior(np.arange(14), np.zeros((14, 2)), np.arange(14.0))).all()


def test_a_users_own_rate_counts_what_he_did_before_the_target() -> None:
    bits = np.array([0b01, 0b11, 0b10, 0b11], np.uint32)
    done, num = done_before(bits, 2, np.array([0, 3, 4]), np.array([0, 0, 1]), np.array([0, 2, 3]))
    assert done.tolist() == [[0, 0], [2, 1], [0, 0]]
    assert num.tolist() == [0, 2, 0]


@pytest.mark.parametrize("num_kinds", [1, 5, 32])
def test_what_was_done_before_targets_in_any_order_is_what_a_sum_over_each_past_says(num_kinds: int) -> None:
    rng = np.random.default_rng(num_kinds)
    starts = np.append(0, np.cumsum(rng.integers(0, 40, 20)))
    owner = rng.integers(0, 20, 90)
    target = starts[owner] + (rng.random(90) * (np.diff(starts)[owner] + 1)).astype(np.int64)
    bits = rng.integers(0, 1 << 32, starts[-1], np.uint32)
    done, _ = done_before(bits, num_kinds, starts, owner, target)
    for row, first, last in zip(done.tolist(), starts[owner], target, strict=True):
        assert row == [int((bits[first:last] >> np.uint32(kind) & 1).sum()) for kind in range(num_kinds)]


class ForgetsInputs(Rates):
    """Broken: nothing is found of the interactions that late kinds come to."""

    def learn(self, events: OddsEvents, number_R: np.ndarray) -> np.ndarray:
        return super().learn(events, np.where(events.is_new_R > 0, number_R, -1))


def came_late(rates: Rates, num_steps: int, delay: int) -> tuple[float, float]:
    """Log loss of the last half's first predictions over the entropy of their rates, and predicted over observed: both
    kinds come ``delay`` steps after their interactions, to some items often, to the others rarely."""
    rng = np.random.default_rng(0)
    row_SR = rng.integers(0, 20, (num_steps, 12))
    did_SRK = rng.random((num_steps, 12, 2)) < np.where(row_SR % 2, 0.7, 0.3)[:, :, None]
    said = []
    for step, row_R in enumerate(row_SR):
        logit_RK = learn(rates, events_of(row_R, np.zeros(12, np.int64), np.ones(12), rng), keys(step))
        said.append(1 / (1 + np.exp(-logit_RK.astype(float))))
        if (before := step - delay) >= 0:
            bits_R = did_SRK[before] @ np.array([1, 2])
            learn(rates, events_of(row_SR[before], bits_R, np.zeros(12), rng), keys(before))
    chance, did = np.array(said[num_steps // 2 :]), did_SRK[num_steps // 2 :]
    rate = did.mean()
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    return float(-np.log(np.where(did, chance, 1 - chance)).mean() / entropy), float(chance.sum() / did.sum())


@pytest.mark.parametrize("kind", [Rates, ForgetsInputs])
def test_kinds_that_come_late_are_predicted_as_well_as_counts_can(kind: type[Rates]) -> None:
    loss, calibration = came_late(kind(MODEL), num_steps=600, delay=30)
    assert (loss < 0.91 and 0.95 < calibration < 1.05) == (kind is Rates), (loss, calibration)


def test_the_weights_wait_as_long_as_most_late_kinds_take_and_not_at_all_where_none_is_late() -> None:
    rng, rates = np.random.default_rng(0), Rates(MODEL)
    came_late(rates, num_steps=100, delay=30)
    assert rates.late_kinds == [True, True]
    # The first of the 12 of a step is followed by its other 11, and by those of 30 steps.
    assert 12 * 30 <= rates.horizon <= 12 * 31
    assert rates.kept.rows.count_2[0] - rates.kept.rows.count_2[1] == rates.horizon
    for step in range(3000):  # some ten thousand events later they come at once
        learn(rates, some(0, rng), keys(1000 + step))
    assert rates.late_kinds == [False, False]
    assert rates.kept.rows.count_2[0] == rates.kept.rows.count_2[1]


class LearnsOfTheQuick(Rates):
    """Broken: the outcomes that have come so far count for all."""

    @property
    def horizon(self) -> int:
        at_once = not any(self.late_kinds) or not len(self.arrivals.lags)
        return 0 if at_once else int(np.percentile(self.arrivals.lags, 95))


@pytest.mark.parametrize("kind", [Rates, LearnsOfTheQuick])
def test_at_the_start_of_a_stream_the_weights_wait_for_the_slow_kinds_too(kind: type[Rates]) -> None:
    rates, delay = kind(MODEL), 200
    came_late(rates, num_steps=delay // 2, delay=delay)  # nothing has come yet
    waits = rates.kept.rows.count_2[1] == 0
    rates = kind(MODEL)
    came_late(rates, num_steps=delay + 50, delay=delay)  # what has come is most of what the stream has seen
    assert (waits and rates.kept.rows.count_2[1] == 0) == (kind is Rates)
    rates = kind(MODEL)
    came_late(rates, num_steps=2 * delay + 100, delay=delay)
    assert rates.kept.rows.count_2[1] > 0


def test_where_kinds_come_at_once_the_weights_wait_for_a_few_outcomes_only() -> None:
    rng, rates = np.random.default_rng(0), Rates(MODEL)
    learn(rates, some(0, rng), keys(0))
    assert rates.kept.rows.count_2.tolist() == [12, 0]
    for step in range(1, 10):
        learn(rates, some(0, rng), keys(step))
    assert rates.kept.rows.count_2.tolist() == [120, 120]


def test_what_is_kept_is_bounded_and_found_until_it_is_overwritten() -> None:
    rng, kept, arrivals = np.random.default_rng(0), KeptInputs(Rates(MODEL).arrays, most=100), Arrivals(150)
    newest: list[int] = []
    for step in range(40):
        new, late = keys(step), np.unique(rng.integers(0, 12 * step + 1, 20) if step else [])[:12].astype(np.int64)
        late = np.pad(late, (0, 12 - len(late)), constant_values=-1)
        is_new_R = np.repeat([True, False], 12)
        number_R = arrivals.number(np.concatenate([new, late]), is_new_R)
        for key, number in zip(late.tolist(), number_R[12:].tolist(), strict=True):
            assert number == (key if key in newest[-150:] else -1), (step, key)
        place_R = kept.place(number_R, is_new_R)
        for key, place in zip(late.tolist(), place_R[12:].tolist(), strict=True):
            assert place == (key % 100 if key in newest[-(100 - 12) :] else -1), (step, key)
        newest += new.tolist()
        kept.rows.count_2[0] += 12
    assert arrivals.num_remembered == 150


def forgets_evicted_rows(trainer: Rates, rows: np.ndarray) -> None:
    """Broken: no version says that a row was evicted."""
    trainer.forget(rows)
    trainer.arrays.item_dirty_V[rows] = 0


def keeps_its_weights(changes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Broken: a delta carries the weights of the first."""
    return changes | {"gain_FK": np.zeros_like(changes["gain_FK"])}


def keeps_its_pairs(changes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Broken: a delta has no counts of pairs."""
    return changes | {name: changes[name][:0] for name in ("pair_index", "pair_VC")}


BROKEN = {"weights": keeps_its_weights, "pairs": keeps_its_pairs}


@pytest.mark.parametrize("broken", ["", "evicts in silence", *BROKEN])
def test_a_server_says_what_its_trainer_says_through_bases_deltas_and_evictions(broken: str) -> None:
    rng, trainer, server = np.random.default_rng(0), Rates(MODEL), Rates(MODEL)
    differed = False
    for step in range(12):
        events = some(step, rng)
        learn(trainer, events, keys(step))
        gone = events.row_R[:2].astype(np.int64)
        (forgets_evicted_rows if broken == "evicts in silence" else Rates.forget)(trainer, gone)
        is_base = step in (0, 7)
        changes = trainer.changes(everything=is_base)
        server.apply(BROKEN.get(broken, dict)(changes), is_base=is_base)
        trainer.mark_published()
        every = events_of(np.arange(400), np.zeros(400, np.int64), np.ones(400), rng)
        said = [each.score(every) for each in (trainer, server, server.copy())]
        np.testing.assert_array_equal(said[1], said[2])
        differed |= not np.array_equal(said[0], said[1])
    assert differed == bool(broken)


def test_a_trainer_goes_on_from_what_is_published_and_from_its_own_state() -> None:
    rng, first = np.random.default_rng(0), Rates(MODEL)
    for step in range(4):
        learn(first, some(step, rng, late=0.3), keys(step))
    resumed, follower, reader = Rates(MODEL), Rates(MODEL), Rates(MODEL)
    resumed.load_state_dict(first.state_dict())
    reader.apply(first.changes(everything=True), is_base=True)
    follower.adopt(reader)
    events = some(4, rng)
    np.testing.assert_array_equal(follower.score(events), first.score(events))
    np.testing.assert_array_equal(learn(resumed, events, keys(4)), learn(first, events, keys(4)))
    np.testing.assert_array_equal(resumed.score(events), first.score(events))


@pytest.mark.parametrize("num_steps", [0, 4, 40])
def test_the_state_of_a_build_that_kept_the_keys_beside_the_inputs_is_read(
    num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.kept.KEPT_BYTES", 1 << 15)
    rng, first, later = np.random.default_rng(0), Rates(MODEL), Rates(MODEL)
    for step in range(num_steps):
        learn(first, some(0, rng), keys(step))
    state, key_P = first.state_dict(), first.arrivals.state_dict()["key"]
    num, most = int(state["arrivals_num"][0]), len(first.kept)
    assert most < 40 * 12, "the ring is full after 40 steps"
    older = {name: each for name, each in state.items() if not name.startswith("arrivals_")} | {
        "kept_lags": first.arrivals.lags
    }
    if num:
        older["kept_key"] = np.roll(key_P[-most:], num)
    later.load_state_dict(older)
    assert later.arrivals.num == num
    known = key_P[-most:][:12]
    late = np.zeros(len(known), np.bool_)
    np.testing.assert_array_equal(later.arrivals.number(known, late), first.arrivals.number(known, late))


def test_what_another_build_or_model_has_published_is_refused_in_words() -> None:
    older = {"row_index": np.arange(2), "shown": np.ones(2), "done": np.ones((2, 2)), "totals": np.ones(3)}
    with pytest.raises(VersionError, match="another build has published this version"):
        Rates(MODEL).apply(older, is_base=True)
    with pytest.raises(VersionError, match="rates: expected"):
        Rates(MODEL).apply(Rates(replace(MODEL, num_features=0)).changes(everything=True), is_base=True)


NUM_NEW = 1 + 6
"""Log-odds that an older build lacks: of the pause, and of pairs of a domain and three features."""


def as_an_older_build(held: dict[str, np.ndarray], now: OddsArrays) -> dict[str, np.ndarray]:
    """Without pauses and pairs of attributes."""
    first = len(now.gain_FK) - 2 - NUM_NEW
    new = {"gain": np.arange(first, first + NUM_NEW)}
    new["hidden"] = new["norm"] = new["kept_log"] = np.arange(first * now.num_kinds, (first + NUM_NEW) * now.num_kinds)
    older = {name: array for name, array in held.items() if not name.startswith(("pause", "pair"))}
    for name, array in older.items():
        for part, places in new.items():
            if name.startswith(part):
                older[name] = np.delete(array, places, axis=1 if part in ("norm", "kept_log") else 0)
    return older


@pytest.mark.parametrize("is_published", [False, True])
def test_rates_of_a_build_without_pauses_and_pairs_are_continued(is_published: bool) -> None:
    rng, first, later = np.random.default_rng(0), Rates(MODEL), Rates(MODEL)
    for step in range(8):
        learn(first, some(step, rng), keys(step))
    arrays, place = first.arrays, len(first.arrays.gain_FK) - 2 - NUM_NEW
    assert np.abs(arrays.gain_FK[place:-2]).max() > 0.0  # it has learned something
    arrays.gain_FK[place:-2] = arrays.hidden_JH[place * 2 : (place + NUM_NEW) * 2] = 0.0  # what the older build says
    events = some(8, rng)
    if is_published:
        later.apply(as_an_older_build(first.changes(everything=True), arrays), is_base=True)
    else:
        later.load_state_dict(as_an_older_build(first.state_dict(), arrays))
    np.testing.assert_allclose(later.score(events), first.score(events), rtol=1e-5, atol=1e-6)
    for step in range(8, 40):
        learn(later, some(0, rng), keys(step))
    assert is_published or np.abs(later.arrays.gain_FK[place:-2]).min() > 0.0
