"""Every rival is asked before it is told, and learns what can be learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.evaluation import evaluate_ranker, evaluate_retriever, retrieval
from bench.rivals import EventByEvent, Retriever, Setting, rankers, retrievers
from bench.rivals.cooccurrence import Cooccurrence, Dictionaries, Matrix
from bench.rivals.featured import Featured
from bench.rivals.popular import Popular
from bench.rivals.rate import Constant
from bench.rivals.sequences import sequences
from bench.streams.events import Step
from tests.bench.samples import START_MS, Actions, chain, info_of, steps_of

RETRIEVERS = [(who, next(iter(ways))) for who, ways in retrievers().items()]
RANKERS = [(who, next(iter(ways))) for who, ways in rankers().items()]


def _answers(rival: Any, setting: Setting, actions: Actions) -> list[NDArray[Any]]:
    return [rival.over(step) for step in steps_of(actions, setting.size)]


def _same_until_the_last(rival: Any, again: Any, setting: Setting) -> bool:
    """Whether two streams that differ in their last event alone get the same answers up to it, and to it."""
    actions = chain(num=200)
    other = [*actions[:-1], {**actions[-1], "item": (actions[-1]["item"] + 5) % 12}]
    one, two = _answers(rival, setting, actions), _answers(again, setting, other)
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(one, two, strict=True))


def _same_until_the_last_kinds(ranker: Any, again: Any, setting: Setting) -> bool:
    actions = chain(num=200)
    other = [*actions[:-1], {**actions[-1], "action": ["impression"]}]
    one, two = _answers(ranker, setting, actions), _answers(again, setting, other)
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("who", "name"), RETRIEVERS)
def test_no_retriever_knows_what_it_is_asked(who: str, name: str) -> None:
    setting, info = retrievers()[who][name], info_of(chain(num=200))
    assert _same_until_the_last(setting.make(info, 1), setting.make(info, 1), setting)


@pytest.mark.parametrize(("who", "name"), RANKERS)
def test_no_ranker_knows_what_it_is_asked(who: str, name: str) -> None:
    setting, info = rankers()[who][name], info_of(chain(num=200))
    assert _same_until_the_last_kinds(setting.make(info, 1), setting.make(info, 1), setting)


class _Peeking(EventByEvent):
    """Learns first and answers then."""

    def over(self, step: Step) -> NDArray[Any]:
        super().over(step)
        return super().over(step)


class _PeekingNetwork:
    def __init__(self, rival: Any) -> None:
        self._rival = rival

    def over(self, step: Step) -> NDArray[Any]:
        self._rival.over(step)
        return np.asarray(self._rival.over(step))


class _PeekingRate(Constant):
    def over(self, step: Step) -> NDArray[np.float64]:
        super().over(step)
        return super().over(step)


def test_a_rival_that_peeks_is_caught() -> None:
    setting = Setting(lambda info, _: _Peeking(Popular(info.num_rows)))
    assert not _same_until_the_last(_Peeking(Popular(12)), _Peeking(Popular(12)), setting)
    assert not _same_until_the_last_kinds(_PeekingRate(3), _PeekingRate(3), setting)
    network = retrievers()["SASRec"][dict(RETRIEVERS)["SASRec"]]
    info = info_of(chain(num=200))
    assert not _same_until_the_last(*(_PeekingNetwork(network.make(info, 1)) for _ in range(2)), network)


@pytest.mark.parametrize(
    "who", ["last-item Markov", "last-pair Markov", "co-occurrence", "SASRec", "GRU4Rec", "BERT4Rec", "Transformer++"]
)
def test_what_follows_what_is_learned(who: str) -> None:
    actions = chain(num=900, num_items=30)
    setting = list(retrievers()[who].values())[-1]
    found = retrieval(evaluate_retriever(setting.make(info_of(actions), 1), steps_of(actions, 16), _ignore))
    popular = retrieval(evaluate_retriever(EventByEvent(Popular(30)), steps_of(actions), _ignore))
    assert np.mean(found["windows"][-8:]) > np.mean(popular["windows"][-8:]) + 0.05


@pytest.mark.parametrize("who", ["logistic regression", "FM", "DIN+DCN"])
def test_who_does_what_is_learned(who: str) -> None:
    """Whether an item is liked depends on the user and the item together."""
    actions = chain(num=3000, num_users=6, num_items=8)
    setting = list(rankers()[who].values())[-1]
    found = evaluate_ranker(setting.make(info_of(actions), 1), steps_of(actions, 16), _kinds(actions), _ignore)
    constant = evaluate_ranker(Constant(3), steps_of(actions), _kinds(actions), _ignore)
    assert found["kinds"]["like"]["ne"] < constant["kinds"]["like"]["ne"] - 0.02


def test_own_items_by_hour_and_pairs_of_items_are_told_apart() -> None:
    """Of two items at each of three hours of the day, the one that comes depends on the two items before it."""
    order = [0, 1, 2, 3, 4, 5, 0, 1, 2, 5, 4, 3]
    actions: Actions = [
        {"user": user, "item": order[step % 12], "action": "order", "timestamp": START_MS + 28_800_000 * step + user}
        for step in range(48) for user in range(3)
    ]  # fmt: skip
    first = {
        who: retrieval(evaluate_retriever(ways[""].make(info_of(actions), 1), steps_of(actions), _ignore))["hr1"]
        for who in ("own frequent", "own frequent, by hour", "last-item Markov", "last-pair Markov")
        for ways in (retrievers()[who],)
    }
    assert first["own frequent, by hour"] > first["own frequent"] + 0.1
    assert first["last-pair Markov"] > first["last-item Markov"] + 0.1


def test_own_items_of_a_weekday_are_told_apart() -> None:
    """Another item on each day of the week, in an order that changes and at any hour."""
    rng = np.random.default_rng(0)
    days = np.flatnonzero(rng.random(200) < 0.5).tolist()
    actions: Actions = [
        {"user": 1, "item": day % 7, "action": "order", "timestamp": START_MS + 86_400_000 * day + 3_600_000 * hour}
        for day, hour in zip(days, rng.integers(8, size=len(days)).tolist(), strict=True)
    ]
    own, by_weekday = (
        retrieval(evaluate_retriever(retrievers()[who][""].make(info_of(actions), 1), steps_of(actions), _ignore))
        for who in ("own frequent", "own frequent, by weekday")
    )
    assert by_weekday["hr1"] > own["hr1"] + 0.5


def test_what_is_popular_at_this_hour_is_told_from_what_is_popular() -> None:
    """Another user each time; the item depends on the hour alone."""
    actions: Actions = [
        {"user": step, "item": step % 4, "action": "order", "timestamp": START_MS + 21_600_000 * step}
        for step in range(60)
    ]
    found = {
        who: retrieval(evaluate_retriever(way.make(info_of(actions), 1), steps_of(actions), _ignore))["hr1"]
        for who in ("most popular", "popular by hour")
        for way in (next(iter(retrievers()[who].values())),)
    }
    assert found["popular by hour"] > 0.9 > found["most popular"]


def test_a_later_kind_counts_as_if_it_had_been_there() -> None:
    """The constant's rate after late feedback is that of the outcomes."""
    actions = chain(num=40)
    late: Actions = []
    for action in actions:
        late.append({**action, "action": ["impression"]})
        late.append({**action, "action": action["action"][1:], "timestamp": action["timestamp"] + 5_000})
    at_once, in_time = Constant(3), Constant(3)
    for one, stream in ((at_once, actions), (in_time, late)):
        for step in steps_of(stream):
            one.over(step)
    np.testing.assert_allclose(in_time.rate_K, at_once.rate_K)


def test_counts_by_a_feature_know_which_kind_of_item_comes_next() -> None:
    """Items of three colours, which follow each other in a circle; most items come only a few times."""
    rng = np.random.default_rng(0)
    actions: Actions = [
        {
            "user": n % 3,
            "item": int(rng.integers(30)) * 3 + n // 3 % 3,
            "action": "click",
            "timestamp": START_MS + 90_000 * n,
        }
        for n in range(900)
    ]
    actions = [{**action, "features": {"colour": "rgb"[action["item"] % 3]}} for action in actions]
    info, found = info_of(actions), []
    for column in (0, 1):  # the stream has no second feature
        rival = Featured(info.num_rows, column)
        found.append(np.mean(retrieval(evaluate_retriever(rival, steps_of(actions), _ignore))["windows"][-8:]))
    assert found[0] > 2 * found[1] > 0


def test_co_occurrence_in_dictionaries_is_that_in_a_matrix() -> None:
    rivals = Cooccurrence(12, 5, 0.7), Cooccurrence(12, 5, 0.7)
    rivals[0].counts, rivals[1].counts = Matrix(13), Dictionaries(13)
    one, two = (np.concatenate([EventByEvent(r).over(s) for s in steps_of(chain(num=16))]) for r in rivals)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert one.max() > 0


def test_co_occurrence_is_the_published_formula() -> None:
    rival = Cooccurrence(4, lags=2, decay=0.5)
    rival.learn(1, np.zeros(0, np.int32))
    rival.learn(2, np.array([1], np.int32))
    rival.learn(3, np.array([1, 2], np.int32))
    scores = rival.score(np.array([2, 1], np.int32))  # newest first: 1, 2
    c12, c13, c23, c21 = 1.0, 0.5, 1.0, 0.5
    assert scores[3] == pytest.approx(c13 + 0.5 * c23)
    assert scores[2] == pytest.approx(c12)
    assert scores[1] == pytest.approx(0.5 * c21)


def test_co_occurrence_knows_what_is_popular_without_a_past_and_by_its_power() -> None:
    cosines, lenient = (Cooccurrence(4, lags=2, decay=0.5, power=power) for power in (0.5, 0.0))
    for rival in (cosines, lenient):
        for row in (2, 3, 3, 3, 1, 3):
            rival.learn(row, np.array([4], np.int32))
        assert rival.score(np.zeros(0, np.int32)).argmax() == 3
    near, far = (rival.score(np.array([4], np.int32)) for rival in (cosines, lenient))
    assert near[3] / near[2] == pytest.approx(2.0, rel=1e-4)
    assert far[3] / far[2] == pytest.approx(4.0, rel=1e-4)


def test_a_sequence_ends_before_the_choice_that_is_asked() -> None:
    actions = chain(num=60, num_users=3)
    info = info_of(actions)
    for step in steps_of(actions):
        seqs = sequences(step, 4, info.kinds, choices_only=True)
        for a, e in enumerate(step.asked.tolist()):
            past = step.past(e)
            last = int(seqs.last_A[a])
            assert (int(seqs.row_BL[seqs.owner_A[a], last]) if last >= 0 else 0) == (past[-1] if len(past) else 0)
            assert int(seqs.row_BL[seqs.owner_A[a], last + 1]) == int(seqs.target_A[a])


def test_a_context_is_no_longer_than_asked_for() -> None:
    actions = chain(num=300, num_users=1)
    seqs = sequences(steps_of(actions)[-1], 4, info_of(actions).kinds, choices_only=True)
    assert int(seqs.last_A[0]) == 3


def _ignore(done: int) -> None:
    del done


def _kinds(actions: Actions) -> tuple[str, ...]:
    return info_of(actions).model.kinds


def test_a_retriever_is_a_retriever() -> None:
    rival: Retriever = EventByEvent(Popular(3))
    assert callable(rival.over)
