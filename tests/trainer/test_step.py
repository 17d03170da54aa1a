"""One step: predict with the weights before it, score, then learn only from the new interactions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch

from kernels.memory import MemoryEvents, MemoryOutcome, MemoryRules, memory_learn
from kernels.odds import OddsEvents, OddsRules, odds_learn
from kernels.transfer import ToHost
from model.config import ModelConfig
from model.embedding import EmbeddingTable
from tests.trainer.samples import (
    FUXI,
    MODEL,
    SAMPLED,
    START_MS,
    TRAINER,
    Piece,
    World,
    assert_same_arrays,
    columns,
    cut,
    example,
    folded,
    pieces_of,
    predict_slowly,
    predictions_of,
    taught,
    twin,
)
from trainer.checkpoint.snapshot import learner_arrays
from trainer.config import TrainerConfig
from trainer.device import choose_device
from trainer.examples.batch import JaggedBatch
from trainer.learner.batch_rows import BatchRows
from trainer.learner.eviction import evict
from trainer.learner.forward import OnRows
from trainer.learner.memory_pass import MemoryPass
from trainer.learner.ranking_pass import RankingPass
from trainer.learner.scoring import Scoring
from trainer.learner.step import Learner, StepReport
from trainer.metrics.evaluator import Forward
from trainer.metrics.prequential import RANKERS, Predictions
from trainer.network.direct_step import DirectStep
from trainer.network.frequency import FrequencyEstimator
from trainer.network.losses import (
    draw_negatives,
    exact_retrieval_loss,
    log_expected_draws,
    pick_in_batch,
    ranking_loss,
    sampled_retrieval_loss,
)
from trainer.network.retrieval import RetrievalRows
from wire.example import Example, Int64, Interactions

pytestmark = pytest.mark.usefixtures("one_thread")

DAY_MS = 86_400_000


def past_of(learner: Learner, examples: Sequence[Example], piece: Piece) -> tuple[Any, Any]:
    """The rows of the user's history before the piece, as far back as a step looks; and the piece's own."""
    history = folded(learner, examples).users[piece.user]
    first_target = min(each.place for each in pieces_of(examples) if each.user == piece.user)
    rows = history.rows(max(0, first_target - learner.model_config.max_context), piece.place + 1)
    return rows[:-1], rows[-1]


def recalled_slowly(before: Learner, examples: Sequence[Example]) -> MemoryOutcome:
    """The memory's outcomes of the choices by its definition, one by one in the order of time, each from what its user
    did before and the network's logits for that alone. Changes ``before``."""
    said = predict_slowly(before, examples)
    pasts = [past_of(before, examples, one.piece) for one in said]
    fresh = [int(own["item"]) for one, (_, own) in zip(said, pasts, strict=True) if one.piece.is_new]
    before.items.insert(np.array(fresh, np.int64), 0, before.num_steps)
    memory, num_rows = before.memory, before.items.num_rows
    memory.grow(num_rows)
    with torch.no_grad():
        table_VD = before.model.retrieval_table(before.items.weight[:num_rows]).numpy()
    told = [nth for nth, one in enumerate(said) if one.is_wanted or one.piece.is_new]
    told.sort(key=lambda nth: int(pasts[nth][1]["time"]))
    queries = [table_VD @ said[nth].query_D for nth in told if said[nth].is_wanted]
    logit_AV = np.array(queries, np.float32).reshape(-1, num_rows)
    rules = MemoryRules(seen_half_life=before.config.memory_half_life, exclude=str(before.config.exclude_seen))
    events = joined([asked_slowly(before, *pasts[nth], is_chosen=said[nth].is_wanted) for nth in told])
    is_repeat = np.array([int(own["item"]) in past["item"] for past, own in (pasts[nth] for nth in told)])
    is_missed = is_repeat & memory.leaves_out
    outcome = memory_learn(memory.arrays, num_rows, events, logit_AV, rules, backend="reference").missed(is_missed)
    return outcome.ordered(np.array([told.index(nth) for nth, one in enumerate(said) if one.is_wanted], np.int64))


def ranked_slowly(before: Learner, examples: Sequence[Example]) -> Any:
    """(R, K) what the odds say of each target, by their definition, one after the other in the order of time."""
    said, before = predict_slowly(before, examples), twin(before)
    pasts = [past_of(before, examples, one.piece) for one in said]
    fresh = [int(own["item"]) for one, (_, own) in zip(said, pasts, strict=True) if one.piece.is_new]
    before.items.insert(np.array(fresh, np.int64), 0, before.num_steps)
    found_RK, kept = np.zeros((len(said), len(before.model_config.kinds))), before.rates.kept
    is_new_R = np.array([one.piece.is_new for one in said])
    number_R = before.rates.arrivals.number(np.array([key_of(one.piece) for one in said]), is_new_R)
    places = np.where(is_new_R | (number_R < 0), -1, number_R % len(kept))
    rules = OddsRules(horizon=before.rates.horizon)
    for nth in sorted(range(len(said)), key=lambda nth: int(pasts[nth][1]["time"])):
        (past, own), one = pasts[nth], said[nth]
        features = [*own["features"].tolist(), *folded(before, examples).users[one.piece.user].user_features.tolist()]
        rows = [
            before.domains.lookup(np.array([own["domain"]]))[0],
            *before.features.lookup(np.array(features, np.int64)),
            1 + int(math.log2(1 + (int(own["time"]) - int(past["time"][-1])) // 1000)) if len(past) else 0,
        ]
        zero, num = np.zeros(1, np.int64), np.array([len(past)])
        events = OddsEvents(
            before.items.lookup(np.array([own["item"]])).astype(np.int32), np.array([own["item"]]),
            np.array([rows], np.int32), np.log(one.probability_K / (1 - one.probability_K))[None].astype(np.float32),
            np.array([one.piece.bits], np.uint32), np.array([one.piece.is_new], np.uint8), zero,
            np.ascontiguousarray(past["item"]), np.ascontiguousarray(past["bits"]),
            np.maximum(zero, num - before.model_config.max_context), num,
            np.array([[own["domain"], *own["features"]]]), np.column_stack([past["domain"], past["features"]]),
            np.array([places[nth]], np.int32),
        )  # fmt: skip
        logit_K = odds_learn(before.rates.arrays, kept.rows, events, rules, backend="reference")[0]
        found_RK[nth] = 1 / (1 + np.exp(-logit_K.astype(float)))
    return found_RK


def key_of(piece: Piece) -> int:
    """Identifies a piece's interaction."""
    user = int.from_bytes(blake2b(piece.user.encode(), digest_size=8).digest(), "little")
    key = (user * 0x1E3779B97F4A7C15 + piece.place) % 2**64
    return key - 2**64 if key >= 2**63 else key


def asked_slowly(learner: Learner, past: Any, own: Any, *, is_chosen: bool) -> MemoryEvents:
    """One target as an event of the memory."""
    rows = learner.items.lookup(np.append(past["item"], own["item"])).astype(np.int32)
    met = [place for place in range(len(past)) if rows[place] > 0]
    chosen = [place for place in met if past["bits"][place] > 0]  # all kinds of this world are positive
    shown = [place for place in met if past["bits"][place] == 0]
    begin = np.zeros(1, np.int64)
    return MemoryEvents(
        rows[-1:], np.array([is_chosen], np.uint8), rows[chosen], begin, begin + len(chosen), rows[met], begin,
        begin + len(met), past["time"][chosen], np.atleast_1d(own["time"]), rows[shown], begin, begin + len(shown),
        group_RC=learner.memory.groups_of(own["features"][None, : MODEL.num_features]),
    )  # fmt: skip


def joined(parts: Sequence[MemoryEvents]) -> MemoryEvents:
    """Events, concatenated."""
    columns = {name: [getattr(part, name) for part in parts] for name in MemoryEvents.__slots__ if name != "weight_R"}
    for kind in ("past", "met", "shown"):
        before = np.cumsum([0, *(len(rows) for rows in columns[f"{kind}_rows"])])
        for end in ("begin", "end"):
            name = f"{kind}_{end}_R"
            columns[name] = [where + start for where, start in zip(columns[name], before, strict=False)]
    return MemoryEvents(**{name: np.concatenate(column) for name, column in columns.items()})


def assert_predicted_before_learned(learner: Learner, examples: Sequence[Example]) -> Predictions:
    """Assert that a step scores the predictions of the weights before it, and of the memory before each target."""
    before = twin(learner, Learner)
    said = predictions_of(learner, examples)
    slowly = predict_slowly(before, examples)
    np.testing.assert_allclose(
        said.probability_RK, ranked_slowly(before, examples), rtol=2e-3, atol=2e-4, err_msg="kinds"
    )
    np.testing.assert_allclose(said.baseline_RK, before.rates.predict(np.array([one.row for one in slowly])))
    assert_recalled_in_order(said, before, examples)
    return said


def assert_recalled_in_order(said: Predictions, before: Learner, examples: Sequence[Example]) -> None:
    expected = recalled_slowly(before, examples)
    np.testing.assert_array_equal(said.ranked_S, expected.rank_R >= 0)
    np.testing.assert_allclose(said.log_loss_S, expected.loss_R, rtol=2e-3, atol=1e-3)
    for ranker, ranks in (("model", expected.rank_R), ("network", expected.model_rank_R)):
        ours = said.rank_KS[RANKERS.index(ranker)]
        assert (np.abs(ours - ranks) <= 1).all(), ranker  # near ties
        np.testing.assert_array_equal(ours == 0, ranks == 0)


@pytest.mark.parametrize("exclude_seen", ["always", "never", "auto"])
@pytest.mark.parametrize("config", [TRAINER, SAMPLED], ids=["exact", "sampled"])
def test_a_batch_is_predicted_with_the_weights_before_it(config: TrainerConfig, exclude_seen: str) -> None:
    learner, world = taught(replace(config, exclude_seen=exclude_seen), num_steps=2)
    for _ in range(2):
        assert_predicted_before_learned(learner, world.examples(6))


class LearnsFirst(Learner):
    """Broken: it learns a batch before it predicts it."""

    def forward(
        self, batch: JaggedBatch, now_ms: int, whole: JaggedBatch | None = None, on_rows: OnRows | None = None
    ) -> Forward:
        forward = super().forward(batch, now_ms, whole)
        self._learn(forward, forward.retrieval_loss + forward.logits_RK.mean())
        return super().forward(batch, now_ms, whole, on_rows)


class InsertsFirst(Learner):
    """Broken: a batch's own items are in the vocabulary when it is predicted."""

    def step(self, examples: Sequence[Example]) -> StepReport:
        for each in examples:
            fresh = np.ascontiguousarray(each.interactions.item_hash[len(each.interactions) - each.num_new :])
            self.items.insert(fresh, 0, self.num_steps)
        return super().step(examples)


class RemembersBackwards(Learner):
    """Broken: the memory takes a batch's newest targets first, and predicts older ones from what came later."""

    def _predict_choices(self, batch: JaggedBatch, forward: Forward, rows: BatchRows) -> Callable[[], MemoryOutcome]:
        return super()._predict_choices(replace(batch, time_ms_n=-batch.time_ms_n), forward, rows)


class RanksBackwards(Learner):
    """Broken: the odds meet a batch's newest targets first."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.scoring.ranking_pass = BackwardPass(self.rates, self.tables, self.model_config)


class BackwardPass(RankingPass):
    def ask(self, batch: JaggedBatch, target_row_R: Int64, logits_RK: ToHost) -> OddsEvents:
        events = super().ask(batch, target_row_R, logits_RK)
        return replace(events, order_R=events.order_R[::-1])


@pytest.mark.parametrize("kind", [LearnsFirst, InsertsFirst, RemembersBackwards, RanksBackwards])
def test_the_check_finds_a_learner_that_peeks(kind: type[Learner]) -> None:
    learner, world = taught(num_steps=2)
    broken, examples = twin(learner, kind), world.examples(8)
    with pytest.raises(AssertionError):
        assert_predicted_before_learned(broken, examples)
    assert_predicted_before_learned(learner, examples)


@pytest.mark.parametrize("least", [1, 1 << 20], ids=["lists beside", "memory alone"])
def test_a_memory_that_learns_beside_the_network_changes_no_bit(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the same predictions, counts and everything learned."""
    monkeypatch.setattr("trainer.learner.batch_rows.LEAST_BESIDE", least)
    learner, world = taught(num_steps=2)
    beside = twin(learner, partial(Learner, threads=True))
    for _ in range(3):
        examples = world.examples(8)
        reports = [each.step(examples) for each in (learner, beside)]
        assert reports[0].retrieval_loss == reports[1].retrieval_loss
    assert_same_arrays(learner_arrays(learner), learner_arrays(beside))


class ScoresLater(Learner):
    """As where the memory is on a GPU, too."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.scoring = Scoring(
            self.model_config, self.config, self.rates, self.tables, self.popularity, beside=True, later=True
        )


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("config", [TRAINER, replace(TRAINER, max_items=20, evict_every_steps=2, metric_share=0.5)])
def test_a_step_that_is_scored_beside_the_next_one_changes_no_bit(
    config: TrainerConfig, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not somebody reads the metrics between the steps."""
    monkeypatch.setattr("trainer.learner.scoring.LEAST_BESIDE", 1)
    learner, world = taught(config, num_steps=2)
    later, ranked = twin(learner, ScoresLater), [list[tuple[bytes, int]](), list[tuple[bytes, int]]()]
    for each, found in zip((learner, later), ranked, strict=True):
        each.scoring.evaluator.on_ranked = lambda batch, rank_S, step, found=found: found.append(
            (batch.item_n.tobytes() + rank_S.tobytes(), step)
        )
    for _ in range(7):
        examples = world.examples(8)
        assert learner.step(examples).ranking_loss == later.step(examples).ranking_loss
        if reads:
            assert later.metrics.summary() == learner.metrics.summary()
    assert_same_arrays(learner_arrays(learner), learner_arrays(later))
    assert ranked[0] == ranked[1]
    assert len(ranked[0]) == 7


def test_the_retrieval_loss_is_the_cross_entropy_of_choices_over_all_items() -> None:
    learner, world = taught()
    learner.step(world.examples(200, max_new=2))  # by now every item is known
    examples, before = world.examples(8), twin(learner)
    report, live = learner.step(examples), before.items.live_rows()
    with torch.no_grad():
        table_VD = before.model.retrieval_table(before.items.weight)[live].double().numpy()
    expected = []
    for one in [one for one in predict_slowly(before, examples) if one.is_wanted]:
        logits_V = table_VD @ one.query_D
        expected.append(np.log(np.exp(logits_V).sum()) - logits_V[np.flatnonzero(live == one.row)[0]])
    assert 0 < len(expected) < report.num_targets
    np.testing.assert_allclose(report.retrieval_loss, np.mean(expected), rtol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_the_catalogue_is_ranked_whole_when_few_of_it_are_gathered(seed: int) -> None:
    """As many rows are gathered as there are items, but not the same ones."""
    config = replace(TRAINER, seed=seed, full_softmax_max_items=1, num_negatives=1)
    learner, sealed = Learner(MODEL, config), columns(np.random.default_rng(seed), 6, 30)
    a, b, new = 7919, 2 * 7919, 3 * 7919
    learner.step([example(replace(sealed, item_hash=np.array([a, b, a, b, a, b])), 6)])
    examples = [example(cut(replace(sealed, item_hash=np.array([new, a, a, a, a, a])), slice(0, 2)), 2)]
    before = twin(learner)
    assert_recalled_in_order(predictions_of(learner, examples), before, examples)


def test_a_large_catalogue_is_predicted_in_parts() -> None:
    """The logits never exceed their bound, which changes little."""
    learner, world = taught()
    examples = world.examples(12)
    whole, parts = twin(learner), twin(learner)
    parts.memory_pass = MemoryPass(parts.memory, parts.items, parts.model, most_logits=1)
    said, in_parts = predictions_of(whole, examples), predictions_of(parts, examples)
    np.testing.assert_allclose(in_parts.log_loss_S, said.log_loss_S, rtol=0.05)


def test_a_share_of_a_large_catalogues_choices_is_ranked_and_all_are_learned() -> None:
    learner, world = taught(replace(TRAINER, full_softmax_max_items=1))
    examples = world.examples(12)
    whole, shared = twin(learner), twin(learner)
    shared.memory_pass = MemoryPass(shared.memory, shared.items, shared.model, exact_rows=10, rows_per_share=10)
    said, some = predictions_of(whole, examples), predictions_of(shared, examples)
    assert 0 < some.ranked_S.sum() < said.ranked_S.sum()
    np.testing.assert_array_equal(np.isfinite(some.log_loss_S), np.isfinite(said.log_loss_S) & some.ranked_S)
    np.testing.assert_allclose(some.log_loss_S[some.ranked_S], said.log_loss_S[some.ranked_S], rtol=0.05)
    ours, theirs, before = (each.memory.arrays for each in (shared, whole, learner))
    np.testing.assert_array_equal(ours.seen, theirs.seen)
    learned = np.abs(theirs.gain[0] - before.gain[0]).max()
    assert np.abs(ours.gain[0] - theirs.gain[0]).max() < 0.2 * learned  # a share alone would learn a share of it


def gradient_of(learner: Learner, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Gradients of the dense weights; ``learner`` stays as it is."""
    other, caught = twin(learner), dict[str, torch.Tensor]()

    def catch(lr: float) -> None:
        caught.update({n: p.grad.clone() for n, p in other.model.named_parameters() if p.grad is not None})

    other.optimiser.step = catch  # type: ignore[method-assign]
    other.step(examples)
    return caught


@pytest.mark.parametrize("feedback", ["vanilla", "reversal"])
def test_only_what_is_new_carries_a_loss(feedback: str) -> None:
    learner, world = taught(replace(TRAINER, feedback=feedback))
    examples = world.examples(12)
    said, pieces = predict_slowly(twin(learner), examples), pieces_of(examples)
    network_RK = np.array([one.probability_K for one in said])
    kinds = np.array([[piece.bits >> bit & 1 for bit in range(3)] for piece in pieces])
    is_new = np.array([piece.is_new for piece in pieces])[:, None]
    assert 0 < is_new.sum() < len(pieces)
    # A late kind's: of its 1, and with reversal less that of the 0 that it was learned with.
    late_RK = -kinds if feedback == "reversal" else (network_RK - 1) * kinds
    expected = np.where(is_new, network_RK - kinds, late_RK).mean(axis=0)
    np.testing.assert_allclose(gradient_of(learner, examples)["rank_bias_K"], expected, rtol=1e-3, atol=1e-6)


def test_an_item_that_stands_in_the_context_alone_is_not_learned_as_a_target() -> None:
    learner = Learner(MODEL, TRAINER)
    sealed = columns(np.random.default_rng(1), 6, 30)
    items = np.array([5, 5, 5, 5, 6, 7], np.int64)
    learner.step([example(replace(sealed, item_hash=items), 2)])
    assert learner.items.lookup(np.array([5, 6, 7])).tolist() == [0, 1, 2]
    assert learner.rates.arrays.item_VC[:, 0].sum() == learner.num_interactions == 2


def test_a_step_may_have_nothing_to_retrieve() -> None:
    model = replace(MODEL, kinds=("impression", "click", "like"))
    for config in (TRAINER, SAMPLED):
        learner, rows = Learner(model, config), columns(np.random.default_rng(1), 6, 30)
        rows.action_bits[:] = 1
        report = learner.step([example(rows, 6, user="a")])
        assert report.retrieval_loss == 0
        assert report.ranking_loss > 0
        clicked = replace(rows, action_bits=rows.action_bits | np.uint32(2))
        report = learner.step([example(clicked, 0, user="a", feedback={4: 2})])
        assert report.retrieval_loss > 0
        counted = learner.metrics.summary()
        assert (counted["num_targets"], counted["retrieval"]["all"]["num"]) == (6, 1)
        assert (learner.num_interactions, learner.num_feedback) == (6, 1)


def test_a_batch_with_nothing_new_teaches_nothing() -> None:
    learner, _ = taught()
    past = columns(np.random.default_rng(0), 5, 30)
    before = {name: array.copy() for name, array in learner_arrays(learner).items()}
    report = learner.step([example(past, 0, number=1000), example(past, 0, number=1001)])
    assert (report.num_targets, report.retrieval_loss, report.ranking_loss) == (0, 0.0, 0.0)
    after, clocks = (
        learner_arrays(learner),
        ("learner.num_steps", "learner.newest_event_ms", "learner.newest_record_ms"),
    )
    assert_same_arrays(
        *(
            {name: array for name, array in each.items() if name not in clocks and not name.startswith("histories.")}
            for each in (before, after)
        )
    )
    assert learner.num_steps == before["learner.num_steps"][0] + 1


def test_examples_with_nothing_new_change_nothing_beside_others() -> None:
    learner, world = taught()
    examples = [each for each in world.examples(8) if each.num_new]
    past = columns(np.random.default_rng(0), 5, 30)
    with_idle = gradient_of(learner, [example(past, 0), *examples, example(past, 0)])
    for name, gradient in gradient_of(learner, examples).items():
        torch.testing.assert_close(with_idle[name], gradient, rtol=1e-3, atol=1e-5)


class ByAutograd(Learner):
    """Leaves every gradient to autograd."""

    def _direct_step(self) -> None:
        return None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"context_gradient": True},
        {"feedback": "fnw", "rank_weight": 0.3, "dropout": 0.2, "top_dropout_ratio": 0.5},
        {"feedback": "vanilla"},
    ],
    ids=lambda changes: ", ".join(changes) or "as configured by default",
)
@pytest.mark.parametrize("model", [MODEL, replace(MODEL, use_value=False), FUXI], ids=["values", "no values", "fuxi"])
def test_what_is_computed_beside_autograd_is_what_autograd_computes(
    changes: dict[str, Any], model: ModelConfig
) -> None:
    """Predictions, losses, gradients of all weights, and what the tables learn."""
    learner, world = taught(replace(TRAINER, **changes), model)
    for _ in range(2):
        examples = world.examples(12)
        slow, fast = twin(learner, ByAutograd), twin(learner)
        expected = gradient_of(slow, examples)
        for name, gradient in gradient_of(fast, examples).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)
        said = [predictions_of(each, examples) for each in (slow, fast)]
        np.testing.assert_allclose(said[1].probability_RK, said[0].probability_RK, rtol=1e-4)
        np.testing.assert_allclose(said[1].log_loss_S, said[0].log_loss_S, rtol=1e-3, atol=1e-4)
        for name, table in fast.tables.items():
            ours, theirs = table.weight[: table.num_rows], slow.tables[name].weight[: table.num_rows]
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)
        learner.step(examples)


class AutogradWhereMuch(Learner):
    """Takes every step for one with too many logits."""

    def _direct_step(self) -> DirectStep:
        return DirectStep(self.model, self.config, most_logits=0)


def test_a_step_with_too_many_logits_to_keep_is_left_to_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, world = taught()
    examples, asked = world.examples(12), list[bool]()
    monkeypatch.setattr(torch.autograd, "backward", lambda _: asked.append(True))
    twin(learner, AutogradWhereMuch).step(examples)
    assert asked == [True]
    twin(learner).step(examples)
    assert asked == [True]


# Losses


@pytest.mark.parametrize("share_late", [0.0, 0.4, 1.0])
def test_a_kind_that_comes_late_has_in_all_the_gradient_of_one_that_was_known_at_once(share_late: float) -> None:
    """At the same weights; for any share of the interactions that gets it late."""
    generator = torch.Generator().manual_seed(0)
    logits_RK = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    final_RK = (torch.rand(50, 3, generator=generator) < 0.4).double()
    late_RK = final_RK * (torch.rand(50, 3, generator=generator) < share_late)
    is_new_R = torch.ones(50, dtype=torch.bool)

    def gradient(*told: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        leaf = logits_RK.clone().requires_grad_()
        torch.autograd.backward(
            torch.stack([ranking_loss(leaf, kinds, is_new, "reversal").sum() for kinds, is_new in told]).sum()
        )
        assert leaf.grad is not None
        return leaf.grad

    at_once = gradient((final_RK, is_new_R))
    torch.testing.assert_close(gradient((final_RK - late_RK, is_new_R), (late_RK, ~is_new_R)), at_once)


def test_late_feedback_is_learned_as_the_configuration_says() -> None:
    logits_RK = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    p, kinds = torch.sigmoid(logits_RK)[0], torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    new, later = torch.tensor([True]), torch.tensor([False])
    expected = {
        "vanilla": (-p[0].log() - (1 - p[1]).log(), -p[0].log()),
        "fnw": (-(1 + p[0]) * p[0].log() - (1 - p[1]) * (1 + p[1]) * (1 - p[1]).log(), -(1 + p[0]) * p[0].log()),
        "reversal": (-p[0].log() - (1 - p[1]).log(), -p[0].log() + (1 - p[0]).log()),
    }
    for feedback, (first, then) in expected.items():
        torch.testing.assert_close(ranking_loss(logits_RK, kinds, new, feedback)[0], first)
        torch.testing.assert_close(ranking_loss(logits_RK, kinds, later, feedback)[0], then)


def test_few_items_take_the_exact_loss_and_many_the_sampled_one() -> None:
    config = replace(TRAINER, full_softmax_max_items=20, num_negatives=16)
    items, frequency = EmbeddingTable(4, init_std=0.1, seed=0, salt=1), FrequencyEstimator(1000.0)
    for num_items in (20, 21):
        rows = items.insert(1 + np.arange(num_items), now_ms=0, step=num_items)
        chosen = RetrievalRows.choose(items, config, num_items, rows[:2], rows[1:3])
        query_RD, table_UD = torch.randn(2, 4), items.gather(chosen.rows_U)
        loss_R = chosen.loss(query_RD, table_UD, rows[1:3], items, frequency, config, num_items)
        exact_R = exact_retrieval_loss(
            query_RD, items.weight[: items.num_rows], torch.from_numpy(rows[1:3]),
            torch.arange(items.num_rows) > 0, "auto",
        )  # fmt: skip
        assert torch.allclose(loss_R, exact_R) == chosen.exact == (num_items == 20)


def test_every_item_drawn_once_makes_the_sampled_loss_the_exact_one() -> None:
    torch.manual_seed(0)
    query_RD, table_VD, target_R = torch.randn(5, 9), torch.randn(12, 9), torch.randint(12, (5,))
    both = [(query_RD.clone().requires_grad_(), table_VD.clone().requires_grad_()) for _ in range(2)]
    exact = exact_retrieval_loss(*both[0], target_R, torch.ones(12, dtype=torch.bool), "auto")
    sampled = sampled_retrieval_loss(*both[1], target_R, torch.arange(12), torch.zeros(12), "auto")
    torch.testing.assert_close(sampled, exact)
    torch.autograd.backward(exact.sum())
    torch.autograd.backward(sampled.sum())
    for ours, theirs in zip(both[0], both[1], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def sampled_over_exact(num_targets: int, num_in_batch: int, num_uniform: int, num_batches: int) -> torch.Tensor:
    """(batches, targets) probability of a target under the exact loss, over that under the sampled one, in float64.

    Targets are drawn by the popularity given to the correction, from 50 items whose scores do not depend on it.
    """
    generator = torch.Generator().manual_seed(num_targets)
    query_RD = torch.randn(num_targets, 8, generator=generator, dtype=torch.float64)
    table_VD = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    share_V = 1 / np.arange(1, 51)
    share_V /= share_V.sum()
    rng, live, ratios = np.random.default_rng(num_uniform), np.arange(50), []
    for step in range(num_batches):
        target_R = rng.choice(50, num_targets, p=share_V)
        uniform = live[draw_negatives(len(live), num_uniform, 1, step)]
        drawn = np.append(pick_in_batch(target_R, num_in_batch, seed=1, step=step), uniform)
        log_draws = log_expected_draws(share_V[drawn], num_in_batch, num_targets, num_uniform, 50)
        target, negatives = torch.from_numpy(target_R), torch.from_numpy(drawn)
        sampled = sampled_retrieval_loss(
            query_RD, table_VD, target, negatives, torch.from_numpy(log_draws), "reference"
        )
        exact = exact_retrieval_loss(query_RD, table_VD, target, torch.ones(50, dtype=torch.bool), "reference")
        ratios.append(torch.exp(sampled - exact))
    return torch.stack(ratios)


@pytest.mark.parametrize(
    "num_draws", [(64, 64, 10), (64, 16, 100), (64, 64, 0), (2, 2, 500), (1, 1, 50), (64, 64, 4000)]
)
def test_the_sampled_denominator_is_the_exact_one_in_expectation(num_draws: tuple[int, int, int]) -> None:
    # From a fifth of a draw per item to eighty; each target alone, or the others as negatives too.
    ratios = sampled_over_exact(*num_draws, num_batches=4000 // num_draws[0] + 60)
    error = float(ratios.std()) / ratios.numel() ** 0.5
    assert abs(float(ratios.mean()) - 1) < 5 * error + 0.01


def test_the_sampled_loss_approaches_the_exact_one_as_draws_increase() -> None:
    errors = [float(sampled_over_exact(64, 64, draws, 20).log().abs().mean()) for draws in (50, 500, 5000, 50_000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


def test_targets_are_negatives_of_each_other_under_one_correction_an_item() -> None:
    config = replace(SAMPLED, num_negatives=200)
    learner, _ = taught(config)
    target_R = learner.items.live_rows()[[0, 1, 2, 1, 0]]
    chosen = RetrievalRows.choose(learner.items, config, 7, target_R, target_R)
    negative_S, log_draws_S = chosen.draws(target_R, learner.items, learner.frequency, config, 7)
    assert len(negative_S) == len(log_draws_S) == len(target_R) + 200
    np.testing.assert_array_equal(negative_S[: len(target_R)], target_R)
    correction = dict(zip(negative_S.tolist(), log_draws_S.tolist(), strict=True))
    assert [correction[row] for row in negative_S.tolist()] == log_draws_S.tolist()
    assert len(set(correction.values())) > 3


def test_negatives_are_live_rows_and_a_function_of_seed_and_step() -> None:
    live = np.array([2, 3, 5, 7])
    drawn = live[draw_negatives(len(live), 4000, 1, 9)]
    np.testing.assert_array_equal(drawn, live[draw_negatives(len(live), 4000, 1, 9)])
    assert not np.array_equal(drawn, live[draw_negatives(len(live), 4000, 1, 10)])
    rows, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(rows, live)
    assert counts.min() > 800


def test_a_long_step_takes_some_of_its_targets_as_negatives() -> None:
    targets = np.arange(1, 101)
    assert pick_in_batch(targets, 100, seed=1, step=0).tolist() == targets.tolist()
    few = pick_in_batch(targets, 10, seed=1, step=0)
    assert len(few) == len(set(few.tolist()) & set(targets.tolist())) == 10
    assert few.tolist() == pick_in_batch(targets, 10, seed=1, step=0).tolist()
    assert few.tolist() != pick_in_batch(targets, 10, seed=1, step=1).tolist()


def test_the_expected_draws_of_a_mixture_add_up() -> None:
    expected = np.exp(log_expected_draws(np.array([0.5, 0.25, 0.0]), 8, 16, 30, 10))
    np.testing.assert_allclose(expected, [0.5 * 7.5 + 3, 0.25 * 7.5 + 3, 3], rtol=1e-6)
    alone = np.exp(log_expected_draws(np.array([0.5]), 1, 1, 30, 10))
    np.testing.assert_allclose(alone, [3], rtol=1e-6)


# Other effects of a step


def test_items_are_learned_from_their_kth_sighting_on() -> None:
    learner = Learner(MODEL, replace(TRAINER, admit_after=3))
    rng = np.random.default_rng(0)
    for sighting in range(1, 5):
        past = replace(columns(rng, 1, 30), item_hash=np.array([42]))
        past.action_bits[:] = 1
        said = predictions_of(learner, [example(past, 1)])
        assert bool(learner.items.lookup(np.array([42]))[0]) == (sighting >= 3)
        assert bool(np.isfinite(said.log_loss_S[0])) == (sighting >= 4)
        assert bool(said.rank_KS[0, 0]) == (sighting >= 4)
    assert learner.popularity.count_V.sum() == 2


def aged(items: list[int], day: float) -> Interactions:
    past = columns(np.random.default_rng(0), len(items), 30)
    past.action_bits[:] = 1
    return replace(past, item_hash=np.array(items), timestamp_ms=np.full(len(items), START_MS + int(day * DAY_MS)))


def test_items_that_nobody_meets_any_more_are_evicted_and_forgotten_everywhere() -> None:
    learner = Learner(MODEL, replace(TRAINER, evict_after_days=2.0, evict_every_steps=2))
    learner.step([example(aged([5, 6], 0), 2)])
    learner.step([example(aged([6], 1.5), 1)])
    assert learner.items.num_live == 2
    old = int(learner.items.lookup(np.array([5]))[0])
    learner.step([example(aged([6], 2.5), 1)])
    learner.step([example(aged([7], 2.6), 1)])
    assert learner.items.lookup(np.array([5, 6])).tolist() == [0, 2]
    assert learner.items.tombstones == [5]
    assert (
        learner.popularity.count_V[old]
        == learner.rates.arrays.item_VC[old, 0]
        == learner.frequency.share(np.array([old]))[0]
        == 0
    )
    learner.step([example(aged([8], 2.7), 1)])
    assert learner.items.lookup(np.array([8])).tolist() == [old]
    assert learner.popularity.count_V[old] == 1


def test_a_catalogue_beyond_its_budget_drops_the_items_met_the_longest_time_ago() -> None:
    learner = Learner(MODEL, replace(TRAINER, max_items=10, evict_every_steps=2))
    for step in range(8):
        learner.step([example(aged([5, *range(100 + 3 * step, 103 + 3 * step)], step), 4)])
        assert step % 2 == 0 or learner.items.num_live <= 10
    kept = learner.items.keys_of(learner.items.live_rows()).tolist()
    assert sorted(kept) == [5, *range(115, 124)], "the newest, and the one that everybody meets"
    assert learner.items.num_dropped == 25 - 10


def test_items_met_at_the_same_moment_stay_together() -> None:
    learner = Learner(MODEL, replace(TRAINER, max_items=10, evict_every_steps=2))
    learner.step([example(aged([*range(100, 120)], 0), 20)])
    learner.step([example(aged([*range(100, 120)], 0), 20)])
    assert learner.items.num_live == 20


def test_stochastic_length_thins_contexts_and_keeps_every_target() -> None:
    model = replace(MODEL, max_context=60)
    plain = replace(TRAINER, max_train_context=0)
    world = World(num_users=3)
    thinned, whole = Learner(model, replace(plain, stochastic_length_alpha=1.5)), Learner(model, plain)
    for _ in range(12):
        examples = world.examples(4, max_new=8)
        ours, theirs = thinned.step(examples), whole.step(examples)
        assert ours.num_targets == theirs.num_targets == len(pieces_of(examples))
    assert ours.num_tokens < theirs.num_tokens
    assert thinned.num_interactions == whole.num_interactions


def test_a_share_of_targets_is_ranked_when_asked_for() -> None:
    learner, _ = taught(replace(TRAINER, metric_share=0.3), num_steps=25)
    counted = learner.metrics.summary()
    assert 0.2 < counted["retrieval"]["all"]["num"] / learner.popularity.count_V.sum() < 0.4
    assert counted["num_targets"] == learner.num_interactions


def test_a_learner_learns_what_follows_what() -> None:
    learner, rng = Learner(MODEL, TRAINER), np.random.default_rng(0)
    ring = np.array([11, 22, 33, 44, 55, 66, 77, 88])
    hits = []
    for step in range(50):
        starts = rng.integers(0, 8, 8)
        pasts = [replace(columns(rng, 9, 30), item_hash=ring[(start + np.arange(9)) % 8]) for start in starts]
        said = predictions_of(learner, [example(past, 3, number=step) for past in pasts])
        hits.append(float((said.rank_KS[0] == 1).mean()))
    assert np.mean(hits[-10:]) > 0.9
    assert hits[0] < 0.7  # what followed the first users' items is known already when the last ones are predicted


# Determinism


@pytest.fixture
def strict() -> Iterator[None]:
    """Deterministic algorithms are a switch of the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("model", [MODEL, FUXI], ids=lambda model: model.block)
@pytest.mark.parametrize(
    "config",
    [TRAINER, replace(SAMPLED, dropout=0.2, stochastic_length_alpha=1.5, metric_share=0.5)],
    ids=["exact", "sampled, with everything random"],
)
@pytest.mark.usefixtures("strict")
def test_the_same_stream_gives_the_same_bits(config: TrainerConfig, model: ModelConfig) -> None:
    config = replace(config, deterministic=True)
    learners = [Learner(model, config, choose_device(config)) for _ in range(2)]
    assert torch.are_deterministic_algorithms_enabled()
    for learner in learners:
        world = World(3)
        for _ in range(5):
            learner.step(world.examples(8))
    assert_same_arrays(*(learner_arrays(learner) for learner in learners))


def test_another_seed_gives_other_bits() -> None:
    first, second = (taught(replace(TRAINER, seed=seed))[0] for seed in (1, 2))
    with pytest.raises(AssertionError):
        assert_same_arrays(learner_arrays(first), learner_arrays(second))


def test_items_that_wait_for_a_row_are_bounded_too_and_the_newest_go_on_waiting() -> None:
    config = replace(TRAINER, admit_after=2, max_items=100)
    learner, day_ms = Learner(MODEL, config), 86_400_000
    learner.items.insert(np.repeat(np.arange(1, 51), 2), 0, 0)
    for day in range(1, 6):
        learner.items.insert(np.arange(day * 1000, day * 1000 + 60), day * day_ms, day)
        evict(config, learner.tables, learner.rates, day * day_ms)
        assert learner.items.map.num_pending <= config.max_items
    assert learner.items.num_live == 50
    waiting, _, seen_ms = learner.items.map.pending()
    assert set(range(5000, 5060)) <= set(waiting.tolist())
    assert seen_ms.min() >= 4 * day_ms


def test_values_of_features_that_are_not_seen_any_more_are_evicted_with_their_counts() -> None:
    learner = Learner(MODEL, replace(TRAINER, evict_after_days=2.0, evict_every_steps=2))
    for day in range(24):
        rows = aged([5, 6], day / 2)
        values = 1000 * np.array([[day, 1], [day, 2]]) + 7
        learner.step([example(replace(rows, feature_hash=values, domain_hash=values[:, 0]), 2)])
        tables, counts = (learner.domains, learner.features), learner.rates.arrays
        assert all(table.num_rows <= 20 for table in tables)
        for table, counts_VC in zip(tables, (counts.domain_VC, counts.feature_VC), strict=True):
            free = np.flatnonzero(~table.live[: table.num_rows])
            assert not counts_VC[free[free < len(counts_VC)]].any()
    assert learner.features.num_dropped >= 15
