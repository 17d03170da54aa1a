"""The engine's numbers equal the trainer's, with and without cache, for one request or several at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.transfer import ToHost
from model.hstu import from_log_value
from model.memory_events import events_of
from model.tokens import token_times
from serving.answering import engine as engine_module
from serving.answering.engine import Engine
from serving.answering.request import Request, Result
from serving.answering.reuse import ReuseProbe
from serving.model.cache import Born
from serving.users.histories import Histories
from serving.versions.manager import HeldVersion, WeightsManager
from tests.serving.world import MODEL, World, example, interactions, manager_of, slice_of, versions
from trainer.examples.batch import build_batch
from wire.example import Example, Interactions
from wire.example_codec import encode_example
from wire.hashing import item_hash
from wire.history import Histories as NoHistories
from wire.weights import Version, decode_blob

CANDIDATES = np.array([item_hash(item) for item in (3, 7, 11, 999_999)], np.int64)
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["hstu", "fuxi"])
def world(request: pytest.FixtureRequest) -> World:
    world = World(model=replace(MODEL, block=request.param))
    for _ in range(5):
        world.learn()
    return world


@pytest.fixture(scope="module")
def manager(world: World) -> WeightsManager:
    return manager_of(next(versions(world, 1)))


@pytest.fixture
def version(manager: WeightsManager) -> HeldVersion:
    assert manager.current is not None
    return manager.current


def engine_of(cache_bytes: int = 100_000_000) -> Engine:
    return Engine(Histories(10**8), cache_bytes=cache_bytes, candidates_per_pass=3)


def request_of(each: Example, *, rank: bool = False, dt_ms: int = 7000, k: int = 10) -> Request:
    past = slice_of(each.interactions, -MODEL.max_context, None)
    last = int(past.timestamp_ms[-1]) if len(past) else 1_700_000_000_000
    return Request(each.user, past, each.user_feature_hash, last + dt_ms, k=k, exclude_seen=False,
               candidates=CANDIDATES if rank else None)  # fmt: skip


def joined(first: Interactions, second: Interactions) -> Interactions:
    return Interactions(*(np.concatenate([getattr(first, n), getattr(second, n)]) for n in Interactions.__slots__))


def one(item: int, time_ms: int) -> Interactions:
    return Interactions(np.array([item]), np.array([1], np.uint32), np.array([time_ms]), np.array([0]),
                        np.array([np.nan], np.float32), np.zeros((1, 0), np.int64))  # fmt: skip


def of_trainer(world: World, each: Example, item: int, dt_ms: int = 7000) -> tuple[torch.Tensor, torch.Tensor]:
    """The trainer's prediction for a next interaction on ``item``: scores of all rows, probabilities of the kinds."""
    past = slice_of(each.interactions, -MODEL.max_context, None)
    last = int(past.timestamp_ms[-1]) if len(past) else 1_700_000_000_000
    next_one = example(each.user, joined(past, one(item, last + dt_ms)), num_new=1)
    batch, learner = build_batch([next_one], NoHistories(MODEL.max_context), MODEL), world.learner
    with torch.no_grad():
        rows = torch.from_numpy(learner.items.lookup(batch.item_n))
        items_nM = learner.model.item_inputs(learner.items.weight[rows])
        actions_nM = learner.model.action_inputs(items_nM, torch.from_numpy(batch.kinds_nK))
        x_TM, times = learner.model.interleave(items_nM, actions_nM), token_times(batch.time_ms_n, batch.query_time_n)
        key_time_T, query_time_T = map(torch.from_numpy, times)
        y_TM = learner.model.encode(x_TM, torch.from_numpy(2 * batch.starts_B1), query_time_T, key_time_T)
        table_VD = learner.model.retrieval_table(learner.items.weight[: learner.items.num_rows])
        item_RM, with_start = y_TM[2 * batch.target_R], torch.cat([y_TM, learner.model.start_M[None]])
        before_SM = with_start[np.where(batch.previous_R < 0, len(y_TM), 2 * batch.previous_R + 1)]
        logits = (learner.model.retrieval_query(before_SM) @ table_VD.T).numpy()
        events = events_of(
            rows.numpy(), batch.bits_n, batch.time_ms_n, batch.starts_B1, np.zeros(1, np.int64), batch.target_R,
            batch.time_ms_n[batch.target_R], MODEL, is_chosen_R=None,
        )  # fmt: skip
        learner.memory.score(replace(events, met_end_R=events.met_begin_R), logits)  # as `request_of`: nothing left out
        prior = learner.forward_pass.prior(batch, learner.items.lookup(batch.item_n[batch.target_R]))
        ranked_RK = learner.model.rank_logits(item_RM, torch.from_numpy(prior))
        target_row_R = learner.items.lookup(batch.item_n[batch.target_R])
        odds_RK = learner.rates.score(learner.scoring.ranking_pass.ask(batch, target_row_R, ToHost(ranked_RK)))
        return torch.from_numpy(logits[0]), torch.sigmoid(torch.from_numpy(odds_RK[-1]))


def close_to(found: Result, expected: Result) -> None:
    assert np.linalg.norm(found.scores - expected.scores) <= TOLERANCE * np.linalg.norm(expected.scores)


@pytest.mark.parametrize("cached", [False, True])
def test_it_predicts_what_the_trainer_predicts_of_the_next_interaction(
    world: World, version: HeldVersion, cached: bool
) -> None:
    engine = engine_of()
    for user, rows in world.histories.items():
        each = example(user, rows)
        for _ in range(1 + cached):
            retrieved = engine.answer(version, [request_of(each, k=1000)])[0]
            ranked = engine.answer(version, [request_of(each, rank=True)])[0]
        for index, item in enumerate(CANDIDATES.tolist()):
            scores, probabilities = of_trainer(world, each, item)
            assert np.allclose(ranked.scores[index], probabilities.numpy(), rtol=TOLERANCE, atol=0)
        expected = scores[world.learner.items.lookup(retrieved.items)].numpy()
        assert len(expected) == world.learner.items.num_live
        assert np.linalg.norm(retrieved.scores - expected) <= TOLERANCE * np.linalg.norm(expected)
    assert not cached or engine.cache.num_hits > 0


def test_someone_unknown_is_answered_by_the_learnt_start(world: World, version: HeldVersion) -> None:
    stranger = example("stranger", slice_of(interactions(world.rng, 1), 0, 0))
    retrieved = engine_of().answer(version, [request_of(stranger, k=1000)])[0]
    ranked = engine_of().answer(version, [request_of(stranger, rank=True)])[0]
    scores, probabilities = of_trainer(world, stranger, int(CANDIDATES[0]))
    expected = scores[world.learner.items.lookup(retrieved.items)].numpy()
    assert np.linalg.norm(retrieved.scores - expected) <= TOLERANCE * np.linalg.norm(expected)
    assert np.allclose(ranked.scores[0], probabilities.numpy(), rtol=TOLERANCE)


def test_a_warm_cache_a_cold_one_and_a_grown_history_give_the_same(world: World, version: HeldVersion) -> None:
    rows = slice_of(world.histories["u0"], 0, MODEL.max_context)
    uncached, grown = engine_of(cache_bytes=0), engine_of()
    for length in range(1, len(rows) + 1):
        each = example("u0", slice_of(rows, 0, length))
        for rank in (False, True):
            expected = uncached.answer(version, [request_of(each, rank=rank)])[0]
            close_to(grown.answer(version, [request_of(each, rank=rank)])[0], expected)
            close_to(grown.answer(version, [request_of(each, rank=rank)])[0], expected)
    assert grown.cache.num_hits > grown.cache.num_misses
    assert len(uncached.cache) == 0


def test_a_history_that_is_not_the_cached_one_gone_on_is_computed_anew(world: World, version: HeldVersion) -> None:
    engine = engine_of()
    engine.answer(version, [request_of(example("u0", slice_of(world.histories["u0"], 0, 3)))])
    other = example("u0", interactions(np.random.default_rng(9), 5))
    close_to(engine.answer(version, [request_of(other)])[0], engine_of(0).answer(version, [request_of(other)])[0])
    assert engine.cache.num_hits == 0


@pytest.mark.parametrize("place", range(5))
def test_what_is_cached_is_good_up_to_an_interaction_of_which_more_is_known_now(
    place: int, world: World, version: HeldVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, rows = engine_of(), slice_of(world.histories["u0"], 0, 5)
    before = engine.answer(version, [request_of(example("u0", rows), rank=True)])[0]
    changed = Interactions(*(getattr(rows, name).copy() for name in Interactions.__slots__))
    changed.action_bits[place] ^= 3
    request = request_of(example("u0", changed), rank=True)
    computed, extend = list[int](), type(version.network).extend

    def count(network: object, x_SM: torch.Tensor, *rest: object) -> object:
        computed.append(len(x_SM))
        return extend(network, x_SM, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(version.network), "extend", count)
    after, expected = engine.answer(version, [request])[0], engine_of(0).answer(version, [request])[0]
    close_to(after, expected)
    assert not np.array_equal(before.scores, expected.scores)
    assert computed == [10 if place == 0 else 2 * (5 - place) + 1, 10], "the rest, and the last action before it"


def test_a_long_history_that_grows_keeps_what_is_cached_of_it(world: World, version: HeldVersion) -> None:
    """Its oldest interactions are dropped by whole segments, not one by one."""
    histories, engine = Histories(10**8, MODEL.max_context), engine_of()
    rows = interactions(np.random.default_rng(3), 60)
    for end in range(1, 61):
        first = (end - 1) // 4 * 4
        histories.feed(0, encode_example(example("u", slice_of(rows, first, end), num_new=1, number=end - 1,
                                                 segment=first // 4, segment_len=4)))  # fmt: skip
        past = histories.get("u")
        assert past is not None
        assert min(end, MODEL.max_context) <= len(past.interactions) <= MODEL.max_context + 4
        request = Request("u", past.interactions, past.user_features, 2**41, exclude_seen=False)
        close_to(engine.answer(version, [request])[0], engine_of(0).answer(version, [request])[0])
    assert engine.cache.num_hits == pytest.approx(60 * 3 / 4, abs=6)


def test_requests_answered_together_get_what_they_get_alone(world: World, version: HeldVersion) -> None:
    requests = [request_of(example(user, rows), rank=index % 2 == 0)
            for index, (user, rows) in enumerate(world.histories.items())]  # fmt: skip
    requests.append(request_of(example("stranger", slice_of(interactions(world.rng, 1), 0, 0))))
    together = engine_of().answer(version, requests)
    for request, found in zip(requests, together, strict=True):
        alone = engine_of(0).answer(version, [request])[0]
        close_to(found, alone)
        assert found.items.tolist() == alone.items.tolist()


def test_a_candidates_probability_does_not_depend_on_its_company(world: World, version: HeldVersion) -> None:
    request = request_of(example("u1", world.histories["u1"]), rank=True)
    assert request.candidates is not None
    whole = engine_of().answer(version, [request])[0]
    turned = Request(
        request.user, request.past, request.user_features, request.now_ms, candidates=request.candidates[::-1].copy()
    )
    assert np.allclose(whole.scores, engine_of().answer(version, [turned])[0].scores[::-1], rtol=TOLERANCE)
    assert whole.known.tolist() == [True, True, True, False]


def test_what_was_seen_is_left_out_and_nothing_comes_twice(world: World, version: HeldVersion) -> None:
    past = slice_of(world.histories["u2"], -MODEL.max_context, None)
    found = engine_of().answer(version, [Request("u2", past, np.zeros(0, np.int64), 2**41, k=1000)])[0]
    everything = set(world.learner.items.keys_of(world.learner.items.live_rows()).tolist())
    assert set(found.items.tolist()) == everything - set(past.item_hash.tolist())
    assert len(found.items) == len(set(found.items.tolist()))
    assert (np.diff(found.scores) <= 0).all()


def answers_over_versions(engine: Engine, world: World) -> bool:
    """Ask for the same user with one version after another; whether all answers equal those without a cache."""
    manager, right = WeightsManager(), True
    each = example("u0", world.histories["u0"])
    for version in versions(world, 4):
        manager.stage(version)
        manager.swap()
        assert manager.current is not None
        for rank in (False, True):
            found = engine.answer(manager.current, [request_of(each, rank=rank)])[0]
            expected = engine_of(0).answer(manager.current, [request_of(each, rank=rank)])[0]
            right &= bool(np.allclose(found.scores, expected.scores, rtol=1e-4))
    return right


def test_cached_state_is_never_reused_over_versions() -> None:
    assert answers_over_versions(engine_of(), World(seed=4))


def reusing(max_error: float, num_versions: int = 60) -> tuple[Engine, list[float]]:
    """An engine that may reuse, asked with one version after another; and each answer's distance from the exact one."""
    engine = Engine(Histories(10**8), reuse=ReuseProbe(8, max_error))
    manager, off = WeightsManager(), []
    world = World(seed=4)
    requests = [request_of(example(user, rows), k=50, rank=index == 0)
            for index, (user, rows) in enumerate(world.histories.items())]  # fmt: skip
    for version in versions(world, num_versions):
        manager.stage(version)
        manager.swap()
        assert manager.current is not None
        exact = engine_of(0).answer(manager.current, requests)
        for found, expected in zip(engine.answer(manager.current, requests), exact, strict=True):
            off.append(engine_module._difference(found, expected))
    return engine, off


def test_what_earlier_versions_left_is_reused_while_the_measured_difference_is_small() -> None:
    engine, off = reusing(max_error=100.0)
    assert engine.reuse.allowed == 8
    assert engine.cache.num_reused > 100
    assert 0 < engine.reuse.error <= max(off) * 1.001, "measured on some of the answers"
    assert max(off[:60]) < 1e-3, "exact before enough was measured"


def test_nothing_is_reused_where_the_measured_difference_is_not_small() -> None:
    engine, off = reusing(max_error=1e-6)
    assert engine.reuse.error > 1e-6
    assert (engine.reuse.allowed, engine.cache.num_reused) == (0, 0)
    assert max(off) < 1e-3


def test_a_line_of_versions_that_begins_anew_reuses_nothing_of_the_old_one() -> None:
    assert Born((1, 0), 7).age(Born((1, 0), 9)) == 2
    assert Born((1, 0), 7).age(Born((2, 0), 9)) == Born((1, 0), 7).age(Born((1, 1), 9)) == -1


def test_a_new_version_finds_the_cache_ready_for_those_who_ask() -> None:
    world, engine, manager = World(seed=4), engine_of(), WeightsManager()
    requests = [request_of(example(user, rows)) for user, rows in world.histories.items()]
    warmed: list[int] = []

    def warm(version: HeldVersion) -> Callable[[], None]:
        entries = engine.warm(version, 10.0)
        warmed.append(len(entries))
        return lambda: [engine.cache.put(each) for each in entries] and None

    manager.before_swap.append(warm)
    for version in versions(world, 4):
        manager.stage(version)
        manager.swap()
        assert manager.current is not None
        misses = engine.cache.num_misses
        for found, expected in zip(
            engine.answer(manager.current, requests[:-1]),
            engine_of(0).answer(manager.current, requests[:-1]),
            strict=True,
        ):
            close_to(found, expected)
        assert engine.cache.num_misses == misses + (len(requests) - 1 if len(warmed) == 1 else 0)
    assert warmed == [0, len(requests) - 1, len(requests) - 1, len(requests) - 1], "only users who asked"
    engine.answer(manager.current, requests[:1])
    assert len(engine.warm(manager.current, 10.0)) == len(requests) - 1
    assert engine.warm(manager.current, 10.0) == [], "no user has asked since"


def test_a_cache_that_forgets_the_version_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Born, "age", lambda self, now: 0)
    assert not answers_over_versions(engine_of(), World(seed=4))


def test_a_cache_that_keeps_the_last_actions_token_would_be_caught(
    world: World, version: HeldVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output depends on the time of the request, so an answer at another time must not use it."""
    rows = slice_of(world.histories["u0"], 0, 6)
    before, after = example("u0", slice_of(rows, 0, 5)), example("u0", rows)

    def agrees() -> bool:
        engine = engine_of()
        engine.answer(version, [request_of(before, dt_ms=10**9)])
        found = engine.answer(version, [request_of(after)])[0]
        expected = engine_of(0).answer(version, [request_of(after)])[0]
        return bool(np.linalg.norm(found.scores - expected.scores) <= TOLERANCE * np.linalg.norm(expected.scores))

    assert agrees()

    def keep_too_much(self: Engine, done: engine_module._Progress) -> None:
        if done.fresh is not None:
            entry = engine_module.CacheEntry(str(done.request.user), done.columns, done.fresh, done.born)
            self.cache.put(entry)

    def start_too_late(self: Engine, held: HeldVersion, request: Request, allowed: int) -> engine_module._Progress:
        started = start(self, held, request, allowed)
        entry = self.cache.get(str(request.user))
        if entry is not None and started.first_token:
            started.past, started.first_token = entry.past, len(entry.past)
        return started

    start = Engine._start
    monkeypatch.setattr(Engine, "_keep", keep_too_much)
    monkeypatch.setattr(Engine, "_start", start_too_late)
    assert not agrees()


def test_the_cache_stays_within_its_bytes(world: World, version: HeldVersion) -> None:
    engine = engine_of(cache_bytes=20_000)
    for user, rows in world.histories.items():
        engine.answer(version, [request_of(example(user, rows))])
        assert engine.cache.num_bytes <= 20_000
    assert 0 < len(engine.cache) < len(world.histories)


def test_items_answer_with_features_that_they_came_with() -> None:
    histories = Histories(10**8)
    rows = interactions(np.random.default_rng(0), 3)
    featured = Interactions(rows.item_hash, rows.action_bits, rows.timestamp_ms, rows.domain_hash, rows.value,
                            np.arange(6, dtype=np.int64).reshape(3, 2))  # fmt: skip
    histories.feed(0, encode_example(example("u", featured)))
    found = histories.items.features_of(np.array([rows.item_hash[2], 5]), 2)
    assert found.tolist() == [[4, 5], [0, 0]]


@pytest.mark.parametrize("user_tokens", [False, True])
def test_domains_and_features_enter_as_they_do_in_the_trainer(user_tokens: bool) -> None:
    model = replace(MODEL, num_features=2, num_user_features=1, user_tokens=user_tokens, predict_value=user_tokens)
    rng = np.random.default_rng(5)

    def featured(rows: Interactions) -> Interactions:
        num = len(rows)
        domains, features = rng.integers(1, 4, num), rng.integers(0, 6, (num, 2))
        state = np.sort(rng.integers(0, 3, (num, int(user_tokens))), axis=0)
        return replace(rows, domain_hash=domains, feature_hash=np.concatenate([features, state], axis=1))

    def of_user(user: str, rows: Interactions, num_new: int = 0) -> Example:
        return replace(example(user, rows, num_new=num_new), user_feature_hash=np.array([len(rows) % 3], np.int64))

    world = World(seed=6, model=model)
    world.histories = {user: featured(rows) for user, rows in world.histories.items()}
    world.learner.step([of_user(user, rows, len(rows)) for user, rows in world.histories.items()])
    manifest, blob = world.version()
    version = manager_of(Version(manifest, decode_blob(blob))).current
    assert version is not None
    engine = Engine(Histories(10**8, num_features=2))
    each = of_user("u0", slice_of(world.histories["u0"], 0, model.max_context))
    engine.histories.feed(0, encode_example(each))
    item = int(each.interactions.item_hash[-1])
    now_ms = int(each.interactions.timestamp_ms[-1]) + 7000
    domain = int(each.interactions.domain_hash[-1])
    past = each.interactions
    request = Request("u0", past, each.user_feature_hash, now_ms, candidates=np.array([item]))
    unknown = Request(None, slice_of(past, 0, 0), np.zeros(0, np.int64), now_ms, candidates=np.array([item]))
    found = engine.answer(version, [request, unknown])
    target = replace(
        one(item, now_ms), domain_hash=np.array([domain]), feature_hash=each.interactions.feature_hash[-1:]
    )
    learner = world.learner
    batch = build_batch(
        [replace(of_user("u0", joined(past, target), 1), user_feature_hash=each.user_feature_hash)],
        NoHistories(model.max_context),
        model,
    )
    with torch.no_grad():
        forward = learner.forward(batch, now_ms)
        events = learner.scoring.ranking_pass.ask(batch, forward.target_row_R, ToHost(forward.logits_RK))
        expected = torch.sigmoid(torch.from_numpy(learner.rates.score(events)))[0].numpy()
        query_RD = version.network.model.retrieval_query(engine.outputs(version, [request]))
    assert np.allclose(found[0].scores[0], expected, rtol=TOLERANCE)
    assert found[1].scores.shape == (1, 3)
    torch.testing.assert_close(query_RD, forward.query_SD, rtol=1e-4, atol=1e-5)
    if forward.value_R is not None:
        assert found[0].values is not None
        np.testing.assert_allclose(found[0].values, from_log_value(forward.value_R).numpy(), rtol=1e-4)
