"""The odds in C++ against their definition, and what they promise: order, and no loss by what they mix."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.beside import Beside
from kernels.odds import OddsArrays, OddsEvents, OddsKept, OddsRules, cpp, odds_begin, odds_learn, odds_predict
from kernels.odds.arrays import MOST_COUNTED
from tests.kernels.yardstick import force, levels


@dataclass
class Stream:
    """Users who do things with items, some of them again, some only later."""

    num_rows: int = 12
    num_users: int = 3
    num_events: int = 60
    num_kinds: int = 3
    attributes: tuple[int, int] = (1, 2)
    num_alike: int = 2
    most_kept: int = 40
    noise: float = 1.0
    seed: int = 0

    def events(self) -> OddsEvents:
        rng, num = np.random.default_rng(self.seed), self.num_events
        user_R, row_R = rng.integers(self.num_users, size=num), rng.integers(0, self.num_rows, num)
        affinity_RK = (row_R * (1 + user_R))[:, None] % (2 + np.arange(self.num_kinds)) == 0
        truth_RK = 3.0 * affinity_RK - 1.0 + (user_R[:, None] - 1.0)
        done_RK = rng.random(truth_RK.shape) < 1 / (1 + np.exp(-truth_RK))
        bits_R = (done_RK << np.arange(self.num_kinds)).sum(axis=1).astype(np.uint32)
        order_n = np.argsort(user_R, kind="stable")
        place_R = np.empty(num, np.int64)
        place_R[order_n] = np.arange(num)
        begin_R = np.searchsorted(user_R[order_n], user_R)
        is_new_R = rng.random(num) < 0.8
        order_R = rng.permutation(num) if self.seed % 2 else np.arange(num)
        num_before_R = np.empty(num, np.int64)
        num_before_R[order_R] = np.cumsum(is_new_R[order_R]) - is_new_R[order_R]
        age_R = rng.integers(0, self.most_kept, num)
        kept_R = np.where(age_R < num_before_R, (num_before_R - 1 - age_R) % self.most_kept, -1)
        alike_nL = rng.integers(0, 4, (num, self.num_alike))
        network_RK = truth_RK + self.noise * rng.normal(size=truth_RK.shape)
        return OddsEvents(
            row_R=row_R.astype(np.int32),
            item_R=1000 + row_R,
            attribute_RA=rng.integers(0, 5, (num, sum(self.attributes) + 1)).astype(np.int32),
            network_RK=network_RK.astype(np.float32),
            bits_R=bits_R,
            is_new_R=is_new_R.astype(np.uint8),
            order_R=order_R,
            past_item_n=(1000 + row_R)[order_n],
            past_bits_n=bits_R[order_n],
            past_begin_R=begin_R,
            past_end_R=place_R,
            alike_RL=alike_nL[place_R],
            past_alike_nL=alike_nL,
            kept_R=kept_R.astype(np.int32),
        )

    def empty(self) -> OddsArrays:
        return OddsArrays.empty(self.num_kinds, *self.attributes, self.num_alike)

    def nothing_kept(self) -> OddsKept:
        return OddsKept.empty(self.empty(), self.most_kept)


def learned(stream: Stream, rules: OddsRules, backend: str = "cpp") -> tuple[tuple[OddsArrays, OddsKept], np.ndarray]:
    odds, kept = stream.empty(), stream.nothing_kept()
    said = odds_learn(odds, kept, stream.events(), rules, backend=backend)
    return (odds, kept), said


def assert_same(left: object, right: object) -> None:
    if isinstance(left, tuple) and isinstance(right, tuple):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
        return
    assert isinstance(left, OddsArrays | OddsKept)
    for each in fields(left):
        np.testing.assert_allclose(
            getattr(left, each.name), getattr(right, each.name), rtol=2e-3, atol=2e-4, err_msg=each.name
        )


def test_events_that_are_learned_on_another_thread_leave_the_same_bits() -> None:
    beside, stream = Beside(), Stream()
    here, there = [(stream.empty(), stream.nothing_kept()) for _ in range(2)]
    for at in range(0, 40, 8):
        events = part_of(stream.events(), at, at + 8)
        expected, coming = (
            odds_learn(*here, events, OddsRules()),
            odds_begin(*there, events, OddsRules(), beside=beside),
        )
        np.testing.assert_array_equal(coming(), expected)
    for left, right in zip(here, there, strict=True):
        for each in fields(left):
            np.testing.assert_array_equal(getattr(left, each.name), getattr(right, each.name), err_msg=each.name)


def test_a_row_out_of_range_is_refused_by_another_thread_too() -> None:
    beside, stream = Beside(), Stream()
    odds, kept, events = stream.empty(), stream.nothing_kept(), stream.events()
    wrong = odds_begin(odds, kept, replace(events, row_R=events.row_R + 100), OddsRules(), beside=beside)
    with pytest.raises(IndexError, match="row_R"):
        wrong()
    right = odds_begin(odds, kept, events, OddsRules(), beside=beside)  # and the thread goes on
    np.testing.assert_array_equal(right(), odds_learn(stream.empty(), stream.nothing_kept(), events, OddsRules()))


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("horizon", [0, 5, 39])
def test_a_stream_is_learned_as_the_definition_does(monkeypatch: pytest.MonkeyPatch, level: str, horizon: int) -> None:
    force(monkeypatch, level)
    stream, rules = Stream(num_events=200), OddsRules(horizon=horizon)
    (slow, expected), (fast, got) = learned(stream, rules, "reference"), learned(stream, rules)
    assert_same(fast, slow)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


@given(
    stream=st.builds(
        Stream, num_rows=st.integers(1, 40), num_users=st.integers(1, 5), num_events=st.integers(0, 60),
        num_kinds=st.integers(1, 9), attributes=st.tuples(st.integers(0, 1), st.integers(0, 8)),
        num_alike=st.integers(0, 3), most_kept=st.integers(8, 50), seed=st.integers(0, 10_000),
    ),
    horizon=st.integers(0, 7),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_stream_is_learned_and_predicted_as_the_definition_does(stream: Stream, horizon: int) -> None:
    rules = OddsRules(horizon=horizon)
    (slow, expected), (fast, got) = learned(stream, rules, "reference"), learned(stream, rules)
    assert_same(fast, slow)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)
    odds, events = fast[0], stream.events()
    before = odds.copy()
    ours, theirs = odds_predict(odds, events), odds_predict(odds, events, backend="reference")
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)
    assert_same(odds, before)


def test_rates_stay_what_they_are_where_a_float_could_no_longer_count() -> None:
    stream, rules = Stream(num_rows=1, num_events=400, attributes=(1, 1)), OddsRules()
    counted = "item_VC", "domain_VC", "feature_VC", "pause_VC", "pair_VC"
    both = {}
    for backend in ("cpp", "reference"):
        odds, kept = stream.empty(), stream.nothing_kept()
        columns = 1 + stream.num_kinds
        for name in counted:
            getattr(odds, name)[:, :columns] = np.array([MOST_COUNTED - 20, *[MOST_COUNTED / 4] * stream.num_kinds])
        odds_learn(odds, kept, stream.events(), rules, backend=backend)
        both[backend] = odds
        assert odds.item_VC[0, 0] < MOST_COUNTED / 2 + stream.num_events
        np.testing.assert_allclose(odds.item_VC[0, 1:columns] / odds.item_VC[0, 0], 0.25, atol=1e-3)
        assert max(getattr(odds, name).max() for name in counted) < MOST_COUNTED
    for name in counted:
        np.testing.assert_allclose(getattr(both["cpp"], name), getattr(both["reference"], name), rtol=1e-6)


def test_what_a_prediction_reads_outlives_a_thread_that_grows_it_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    odds, function, alive = Stream().empty(), cpp.function, []
    names = [each.name for each in fields(odds) if isinstance(getattr(odds, each.name), np.ndarray)]
    read = [weakref.ref(each) for each in cpp._arrays_of(odds)]

    def while_others_grow(name: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            for name_ in names:
                setattr(odds, name_, getattr(odds, name_).copy())
            alive.extend(each() is not None for each in read)
            return function(name)(*given)

        return call

    monkeypatch.setattr(cpp, "function", while_others_grow)
    odds_predict(odds, Stream().events())
    assert alive == [True] * len(read)


@pytest.mark.parametrize("horizon", [0, 7])
def test_the_second_event_is_predicted_by_what_the_first_has_left(horizon: int) -> None:
    stream, rules = Stream(num_events=40), OddsRules(horizon=horizon)
    events, odds, kept = stream.events(), stream.empty(), stream.nothing_kept()
    together = odds_learn(odds, kept, events, rules)
    one_by_one, kept_one_by_one = stream.empty(), stream.nothing_kept()
    for r in range(40):
        alone = part_of(events, r, r + 1)
        np.testing.assert_array_equal(odds_predict(one_by_one, alone), together[r : r + 1])
        odds_learn(one_by_one, kept_one_by_one, alone, rules)
    for each in fields(OddsArrays):
        np.testing.assert_array_equal(getattr(odds, each.name), getattr(one_by_one, each.name))
    for each in fields(OddsKept):
        np.testing.assert_array_equal(getattr(kept, each.name), getattr(kept_one_by_one, each.name))


def part_of(events: OddsEvents, first: int, stop: int) -> OddsEvents:
    """These events alone, in order."""
    whole = {each.name: getattr(events, each.name) for each in fields(OddsEvents)}
    ends = ("_R", "_RA", "_RK", "_RL")
    part = {name: array[first:stop] if name.endswith(ends) else array for name, array in whole.items()}
    return OddsEvents(**part | {"order_R": np.arange(stop - first)})


def of_one_kind(came: list[int], places: list[int]) -> OddsEvents:
    """Interactions of strangers with one item (place -1), and a kind that comes to those at the other places."""
    num, none = len(came), np.zeros(0, np.int64)
    zero = np.zeros(num, np.int64)
    return OddsEvents(
        zero.astype(np.int32), zero, np.zeros((num, 1), np.int32), np.zeros((num, 1), np.float32),
        np.array(came, np.uint32), (np.array(places) < 0).astype(np.uint8), np.arange(num), none,
        none.astype(np.uint32), zero, zero, np.zeros((num, 0), np.int64), np.zeros((0, 0), np.int64),
        np.array(places, np.int32),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_weights_learn_of_an_interaction_once_with_the_kinds_that_it_has_by_then(backend: str) -> None:
    odds, kept = OddsArrays.empty(1, 0, 0), OddsKept.empty(OddsArrays.empty(1, 0, 0), 8)
    at_first, rules = odds.gain_FK.copy(), OddsRules(horizon=3)
    odds_learn(odds, kept, of_one_kind([0, 0, 0], [-1, -1, -1]), rules, backend=backend)
    assert kept.count_2.tolist() == [3, 0]
    np.testing.assert_array_equal(odds.gain_FK, at_first)  # nothing is known of any of them
    odds_learn(odds, kept, of_one_kind([1], [0]), rules, backend=backend)
    np.testing.assert_array_equal(odds.gain_FK, at_first)
    odds_learn(odds, kept, of_one_kind([0], [-1]), rules, backend=backend)
    assert kept.count_2.tolist() == [4, 1]
    assert odds.gain_FK[-1, 0] > at_first[-1, 0]  # the first was a 1
    odds_learn(odds, kept, of_one_kind([0], [-1]), rules, backend=backend)
    taught = float(kept.log_PI[1, -1])
    before, square = odds.gain_FK[-1, 0], odds.gain_square_FK[-1, 0]
    odds_learn(odds, kept, of_one_kind([1], [1]), rules, backend=backend)
    # The slopes of the 0 that it was taught as and of this come to that of a 1, at the weights of now.
    slope = -np.sqrt(odds.gain_square_FK[-1, 0] - square * rules.decay)
    assert odds.gain_FK[-1, 0] > before
    assert -1.0 - taught < slope < -taught
    odds_learn(odds, kept, of_one_kind([1], [1]), rules, backend=backend)  # nothing that it did not have
    assert odds.gain_FK[-1, 0] > before
    assert kept.count_2.tolist() == [5, 2]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_kind_is_not_counted_more_often_than_interactions(backend: str) -> None:
    """The interactions may have been counted in another row, which is gone: what is left for row 0 are the kinds."""
    odds, kept = OddsArrays.empty(1, 0, 0), OddsKept.empty(OddsArrays.empty(1, 0, 0), 8)
    odds.total_C[:] = 100.0, 5.0
    odds_learn(odds, kept, replace(of_one_kind([1, 1], [0, 0]), kept_R=np.full(2, -1, np.int32)), OddsRules(),
               backend=backend)  # fmt: skip
    assert not odds.item_VC[0].any()
    assert not odds.pause_VC.any()
    assert odds.total_C.tolist() == [100.0, 7.0], "over all items it is known what they belong to"
    odds_learn(odds, kept, of_one_kind([0, 1, 0], [-1, -1, -1]), OddsRules(horizon=4), backend=backend)
    late = replace(of_one_kind([1] * 5, [0] * 5), kept_R=np.full(5, -1, np.int32))
    odds_learn(odds, kept, late, OddsRules(horizon=4), backend=backend)
    assert odds.item_VC[0, :2].tolist() == [3.0, 3.0]
    blocks = odds.item_VC[0].reshape(-1, 2)
    assert (blocks[:, 1] <= blocks[:, 0]).all()


def of_two_features(num: int, *, is_hidden: str = "") -> tuple[OddsEvents, OddsArrays]:
    """A kind that depends on whether two features are alike, or whether the user comes back at once, and on nothing
    else; ``is_hidden``: what events do not tell."""
    rng, zero = np.random.default_rng(0), np.zeros(num, np.int64)
    feature_R2, pause_R = rng.integers(0, 4, (num, 2)), rng.integers(1, 3, num)
    done_R = rng.random(num) < np.where(feature_R2[:, 0] == feature_R2[:, 1], 0.8, np.where(pause_R == 1, 0.4, 0.1))
    attribute_RA = np.concatenate([feature_R2 + np.array([0, 10]), pause_R[:, None]], axis=1)
    attribute_RA[:, {"": [], "features": [0, 1], "pause": [2]}[is_hidden]] = 0
    events = OddsEvents(
        zero.astype(np.int32), zero, attribute_RA.astype(np.int32), np.zeros((num, 1), np.float32),
        done_R.astype(np.uint32), np.ones(num, np.uint8), np.arange(num), zero[:0], zero[:0].astype(np.uint32), zero,
        zero, np.zeros((num, 0), np.int64), np.zeros((0, 0), np.int64), np.full(num, -1, np.int32),
    )  # fmt: skip
    return events, OddsArrays.empty(1, 0, 2)


@pytest.mark.parametrize("lost", ["", "pairs", "features", "pause"])
def test_what_depends_on_two_features_at_once_or_on_the_pause_is_found(lost: str) -> None:
    num = 4_000
    events, odds = of_two_features(num, is_hidden=lost if lost in ("features", "pause") else "")
    kept, said = OddsKept.empty(odds, 10), list[np.ndarray]()
    for at in range(0, num, 20):
        said.append(odds_learn(odds, kept, part_of(events, at, at + 20), OddsRules()))
        if lost == "pairs":  # broken: they are not counted
            odds.pair_VC[:] = 0.0
    found = loss(np.concatenate(said)[num // 2 :], _cut(events, num // 2))
    assert (found < 0.53) == (not lost), found


def loss(logit_RK: np.ndarray, events: OddsEvents) -> float:
    came_RK = events.bits_R[:, None] >> np.arange(logit_RK.shape[1], dtype=np.uint32) & 1
    return float(np.logaddexp(0.0, np.where(came_RK > 0, -logit_RK, logit_RK)).mean())


@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_a_network_that_knows_is_believed_and_one_that_does_not_is_not(noise: float) -> None:
    """Beside a good network nearly as good as it alone, beside noise nearly as good as without one."""
    stream = Stream(num_events=6_000, noise=noise)
    events = replace(stream.events(), is_new_R=np.ones(stream.num_events, np.uint8))
    with_it = loss(_said(stream, events)[2000:], _cut(events, 2000))
    without = replace(events, network_RK=np.zeros_like(events.network_RK))
    counts = loss(_said(stream, without)[2000:], _cut(events, 2000))
    network = loss(events.network_RK[2000:], _cut(events, 2000))
    assert with_it < min(counts, network) + 0.02
    assert noise or with_it < counts - 0.002


def of_a_rare_kind(rate_V: np.ndarray, num: int, seed: int) -> OddsEvents:
    """Strangers' interactions with any of the items, of which each brings a kind at its own rate."""
    rng = np.random.default_rng(seed)
    row_R, zero, none = rng.integers(len(rate_V), size=num), np.zeros(num, np.int64), np.zeros(0, np.int64)
    return OddsEvents(
        row_R.astype(np.int32), row_R, np.zeros((num, 1), np.int32), np.zeros((num, 1), np.float32),
        (rng.random(num) < rate_V[row_R]).astype(np.uint32), np.ones(num, np.uint8), np.arange(num), none,
        none.astype(np.uint32), zero, zero, np.zeros((num, 0), np.int64), np.zeros((0, 0), np.int64),
        np.full(num, -1, np.int32),
    )  # fmt: skip


@pytest.mark.parametrize(("shares", "most"), [([1.0], 1.005), ([0.2, 0.2, 0.2, 0.2, 4.2], 0.97)])
def test_a_rare_kind_is_predicted_as_by_its_rate_or_better_where_items_differ(shares: list[float], most: float) -> None:
    """One time in two hundred, so thirty times in all: mean of eight streams, relative to the rate so far."""
    num, found = 6_000, []
    for seed in range(8):
        events, odds = of_a_rare_kind(0.005 * np.resize(shares, 60), num, seed), OddsArrays.empty(1, 0, 0)
        said = odds_learn(odds, OddsKept.empty(odds, 8), events, OddsRules())
        came_R = events.bits_R.astype(float)
        rate_R = (came_R.cumsum() - came_R + 1) / (np.arange(num) + 2)
        found.append(loss(said, events) / loss(np.log(rate_R / (1 - rate_R))[:, None], events))
    assert np.mean(found) < most, found


def _said(stream: Stream, events: OddsEvents) -> np.ndarray:
    return odds_learn(stream.empty(), stream.nothing_kept(), events, OddsRules())


def _cut(events: OddsEvents, first: int) -> OddsEvents:
    return replace(events, bits_R=events.bits_R[first:])


def test_what_does_not_fit_is_refused_in_words() -> None:
    stream = Stream()
    odds, kept, events = stream.empty(), stream.nothing_kept(), stream.events()
    for backend in ("cpp", "reference"):
        with pytest.raises(IndexError, match="row_R: expected rows 0 to 63, got -1"):
            odds_learn(odds, kept, replace(events, row_R=events.row_R - 1), OddsRules(), backend=backend)
    assert_same(odds, stream.empty())
    with pytest.raises(IndexError, match="row_R: expected rows 0 to 63"):
        odds_predict(odds, replace(events, row_R=events.row_R + 100))
    with pytest.raises(IndexError, match="attribute_RA: expected rows 0 to 63"):
        odds_predict(odds, replace(events, attribute_RA=events.attribute_RA + 100))
    with pytest.raises(ValueError, match="network_RK: expected float32 of shape"):
        odds_predict(odds, replace(events, network_RK=events.network_RK[:, :2]))
    with pytest.raises(ValueError, match="order_R: expected each of 0 to 59 once"):
        odds_learn(odds, kept, replace(events, order_R=1 + events.order_R), OddsRules())
    with pytest.raises(ValueError, match="ranges within 60 interactions"):
        odds_predict(odds, replace(events, past_end_R=events.past_end_R + 100))
    with pytest.raises(ValueError, match="kept_R: expected -1 or one of 40 places"):
        odds_learn(odds, kept, replace(events, kept_R=events.kept_R + 100), OddsRules())
    with pytest.raises(ValueError, match=r"horizon: expected 0 to 39 \(what is kept\), got 40"):
        odds_learn(odds, kept, events, OddsRules(horizon=40))
    with pytest.raises(ValueError, match=r"log_PI: expected .* numbers a row"):
        odds_learn(odds, OddsKept.empty(OddsArrays.empty(9, 1, 2), 40), events, OddsRules())
