"""The odds in C++ against their definition, and what they promise: order, and no loss by what they mix."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels.odds.reference as reference
from kernels.odds import OddsArrays, OddsEvents, OddsRules, odds_learn, odds_predict
from tests.kernels.yardstick import force, levels
from trainer.losses import ranking_loss


@dataclass
class Stream:
    """Users who do things with items, some of them again, some only later."""

    num_rows: int = 12
    num_users: int = 3
    num_events: int = 60
    num_kinds: int = 3
    attributes: tuple[int, int] = (1, 2)
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
        network_RK = truth_RK + self.noise * rng.normal(size=truth_RK.shape)
        return OddsEvents(
            row_R=row_R.astype(np.int32),
            item_R=1000 + row_R,
            attribute_RA=rng.integers(0, 5, (num, sum(self.attributes))).astype(np.int32),
            network_RK=network_RK.astype(np.float32),
            bits_R=bits_R,
            is_new_R=(rng.random(num) < 0.8).astype(np.uint8),
            order_R=rng.permutation(num) if self.seed % 2 else np.arange(num),
            past_item_n=(1000 + row_R)[order_n],
            past_bits_n=bits_R[order_n],
            past_begin_R=begin_R,
            past_end_R=place_R,
        )

    def empty(self) -> OddsArrays:
        return OddsArrays.empty(self.num_kinds, *self.attributes)


def learned(stream: Stream, rules: OddsRules, backend: str = "cpp") -> tuple[OddsArrays, np.ndarray]:
    odds = stream.empty()
    return odds, odds_learn(odds, stream.events(), rules, backend=backend)


def assert_same(left: OddsArrays, right: OddsArrays) -> None:
    for each in fields(OddsArrays):
        np.testing.assert_allclose(
            getattr(left, each.name), getattr(right, each.name), rtol=2e-3, atol=2e-4, err_msg=each.name
        )


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("feedback", ["reversal", "vanilla", "fnw"])
def test_a_stream_is_learned_as_the_definition_does(monkeypatch: pytest.MonkeyPatch, level: str, feedback: str) -> None:
    force(monkeypatch, level)
    stream, rules = Stream(num_events=200), OddsRules(feedback=feedback)
    (slow, expected), (fast, got) = learned(stream, rules, "reference"), learned(stream, rules)
    assert_same(fast, slow)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


@given(
    stream=st.builds(
        Stream, num_rows=st.integers(1, 40), num_users=st.integers(1, 5), num_events=st.integers(0, 60),
        num_kinds=st.integers(1, 9), attributes=st.tuples(st.integers(0, 1), st.integers(0, 4)),
        seed=st.integers(0, 10_000),
    )
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_stream_is_learned_and_predicted_as_the_definition_does(stream: Stream) -> None:
    (slow, expected), (fast, got) = learned(stream, OddsRules(), "reference"), learned(stream, OddsRules())
    assert_same(fast, slow)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)
    before, events = fast.copy(), stream.events()
    ours, theirs = odds_predict(fast, events), odds_predict(fast, events, backend="reference")
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)
    assert_same(fast, before)


def test_the_second_event_is_predicted_by_what_the_first_has_left() -> None:
    stream = Stream(num_events=40)
    events, odds = stream.events(), stream.empty()
    together = odds_learn(odds, events, OddsRules())
    one_by_one = stream.empty()
    for r in range(40):
        one = {each.name: getattr(events, each.name) for each in fields(OddsEvents)}
        one = {name: part[r : r + 1] if name.endswith(("_R", "_RA", "_RK")) else part for name, part in one.items()}
        alone = OddsEvents(**one | {"order_R": np.zeros(1, np.int64)})
        np.testing.assert_array_equal(odds_predict(one_by_one, alone), together[r : r + 1])
        odds_learn(one_by_one, alone, OddsRules())
    for each in fields(OddsArrays):
        np.testing.assert_array_equal(getattr(odds, each.name), getattr(one_by_one, each.name))


def test_its_slope_is_that_of_the_networks_loss() -> None:
    rng = np.random.default_rng(0)
    for feedback in ("vanilla", "fnw", "reversal"):
        for is_new in (True, False):
            logit_K, came_K = rng.normal(size=4), np.array([0.0, 1.0, 0.0, 1.0])
            leaf = torch.tensor(logit_K[None], requires_grad=True)
            loss = ranking_loss(leaf, torch.tensor(came_K[None]), torch.tensor([is_new]), feedback)
            (expected,) = torch.autograd.grad(loss.sum(), leaf)
            np.testing.assert_allclose(reference._slope(logit_K, came_K, is_new, feedback), expected[0], atol=1e-12)


def loss(logit_RK: np.ndarray, events: OddsEvents) -> float:
    came_RK = events.bits_R[:, None] >> np.arange(logit_RK.shape[1], dtype=np.uint32) & 1
    return float(np.logaddexp(0.0, np.where(came_RK > 0, -logit_RK, logit_RK)).mean())


@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_a_network_that_knows_is_believed_and_one_that_does_not_is_not(noise: float) -> None:
    """Beside a good network nearly as good as it alone, beside noise nearly as good as without one."""
    stream = Stream(num_events=6_000, noise=noise)
    events = replace(stream.events(), is_new_R=np.ones(stream.num_events, np.uint8))
    with_it = loss(odds_learn(stream.empty(), events, OddsRules())[2000:], _cut(events, 2000))
    without = replace(events, network_RK=np.zeros_like(events.network_RK))
    counts = loss(odds_learn(stream.empty(), without, OddsRules())[2000:], _cut(events, 2000))
    network = loss(events.network_RK[2000:], _cut(events, 2000))
    assert with_it < min(counts, network) + 0.02
    assert noise or with_it < counts - 0.002


def _cut(events: OddsEvents, first: int) -> OddsEvents:
    return replace(events, bits_R=events.bits_R[first:])


def test_what_does_not_fit_is_refused_in_words() -> None:
    stream = Stream()
    odds, events = stream.empty(), stream.events()
    for backend in ("cpp", "reference"):
        with pytest.raises(IndexError, match="row_R: expected rows 0 to 63, got -1"):
            odds_learn(odds, replace(events, row_R=events.row_R - 1), OddsRules(), backend=backend)
    assert_same(odds, stream.empty())
    with pytest.raises(IndexError, match="row_R: expected rows 0 to 63"):
        odds_predict(odds, replace(events, row_R=events.row_R + 100))
    with pytest.raises(IndexError, match="attribute_RA: expected rows 0 to 63"):
        odds_predict(odds, replace(events, attribute_RA=events.attribute_RA + 100))
    with pytest.raises(ValueError, match="network_RK: expected float32 of shape"):
        odds_predict(odds, replace(events, network_RK=events.network_RK[:, :2]))
    with pytest.raises(ValueError, match="order_R: expected each of 0 to 59 once"):
        odds_learn(odds, replace(events, order_R=1 + events.order_R), OddsRules())
    with pytest.raises(ValueError, match="ranges within 60 interactions"):
        odds_predict(odds, replace(events, past_end_R=events.past_end_R + 100))
    with pytest.raises(ValueError, match="feedback: expected one of"):
        odds_learn(odds, events, OddsRules(feedback="never"))
